"""The step's loss and gradient: equal to torch's, and the same on every mesh and however rows are made up."""

import os
import pathlib
import subprocess
import sys

import mesh_worker
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from tests.support import draw_samples, pack_rows, write_records
from vlm3_jax.checkpoint import tiny
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig

ROOT = pathlib.Path(__file__).resolve().parents[2]


# What the others put together is seen one by one in these; they run by make test-slow.
LATER = {
    "fsdp 8, recomputed", "a row each, lists of blocks, accumulated",
    "replica 2 x fsdp 4, partly recomputed", "pairs of blocks", "pairs of blocks, kept on the host",
    "experts, fsdp 4 x tensor 2, recomputed", "fsdp 4 x tensor 2, head in chunks",
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tiny_model, tmp_path_factory):
    """(samples, a function that works through cases and gives their results).

    Six conversations and six sets of independent questions.
    """
    folder = tmp_path_factory.mktemp("meshes")
    data = write_records(folder / "data")
    turns, spec = draw_samples(tiny_model, data, "turns", 6)
    independent, _ = draw_samples(tiny_model, data, "independent", 6)
    samples = [s for pair in zip(turns, independent) for s in pair]
    # Rows of one or two samples, and an empty one.
    rows = [samples[0:2], samples[2:4], samples[4:6], samples[6:7], [], samples[7:8], samples[8:10], samples[10:12]]
    np.savez(folder / "packed.npz", **pack_rows(rows, spec, RowBudget(208, 304, 48)))
    # With lists of blocks, which change what is computed but not what comes out.
    lists = {"pair_block": 8, "pairs": 136, "patch_pairs": 400}
    alone = [*([s] for s in samples), *[[]] * 4]
    np.savez(folder / "unpacked.npz", **pack_rows(alone, spec, RowBudget(128, 160, 24, **lists)))
    pairs = RowBudget(208, 304, 48, pair_block=16, pairs=80, patch_pairs=150)
    np.savez(folder / "paired.npz", **pack_rows(rows, spec, pairs))
    experts = tiny.make(folder / "experts", "moe")
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}

    def run(names) -> dict[str, dict]:
        command = [sys.executable, mesh_worker.__file__, str(tiny_model), str(experts), str(folder), *names]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return {name: dict(np.load(folder / f"{name}.npz")) for name in names}

    return samples, run


@pytest.fixture(scope="module")
def worked(work):
    """(samples, results of the cases that are always looked at)."""
    samples, run = work
    return samples, run([name for name in mesh_worker.CASES if name not in LATER])


@pytest.fixture(scope="module")
def worked_later(work, worked):
    """The results of all cases."""
    return worked[1] | work[1]([name for name in mesh_worker.CASES if name in LATER])


def without_key_bias(results) -> np.ndarray:
    """All gradients in one vector, but for the vision key bias: its true gradient is zero, what is left is noise."""
    parts = []
    for name, value in sorted(results.items()):
        if not name.startswith("loss"):
            if name.endswith("qkv_bias"):
                value = value * np.array([1, 0, 1], np.float32)[:, None, None]
            parts.append(value.ravel().astype(np.float64))
    return np.concatenate(parts)


def difference(one, two) -> float:
    """Norm of the difference of two gradients, relative."""
    a, b = without_key_bias(one), without_key_bias(two)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize(
    "case", [c for c in mesh_worker.CASES if c not in {"one device", "experts", "bfloat16", *LATER}]
)
def test_loss_and_gradient_are_the_same(case, worked):
    same_as_alone(worked[1], case)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(LATER))
def test_loss_and_gradient_are_the_same_here_too(case, worked_later):
    same_as_alone(worked_later, case)


def same_as_alone(results, case) -> None:
    """A case gives what one device gives."""
    here, there = results[case], results["experts" if mesh_worker.CASES[case].experts else "one device"]
    assert here["loss"] == pytest.approx(there["loss"], rel=1e-6)
    np.testing.assert_allclose(here["loss_by_group"], there["loss_by_group"], rtol=2e-6)
    assert here["loss_balance"] == pytest.approx(there["loss_balance"], rel=1e-6)
    assert (there["loss_balance"] > 0) == mesh_worker.CASES[case].experts
    assert difference(here, there) < 1e-5
    assert not all(np.array_equal(here[k], there[k]) for k in here), "the same program ran twice"


def test_bfloat16_stays_near(worked):
    """The recipe's precision: float32 gradients of a bfloat16 computation, off by its rounding and no more."""
    here, there = worked[1]["bfloat16"], worked[1]["one device"]
    assert {value.dtype for value in here.values()} == {np.dtype(np.float32)}
    assert here["loss"] == pytest.approx(there["loss"], rel=5e-3)
    assert here["loss"] != pytest.approx(there["loss"], rel=1e-6)
    assert 1e-4 < difference(here, there) < 0.05


@pytest.fixture(scope="module")
def reference(worked, tiny_model):
    """transformers on every conversation of every sample: the loss of each supervised token, and the gradient."""
    samples, _ = worked
    model = Qwen3VLForConditionalGeneration.from_pretrained(tiny_model).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(tiny_model)
    weight = sum(s.target_weight.sum() for s in samples)
    tokens, losses = [], []
    for sample in samples:
        images = [Image.fromarray(layout.ref.load()) for layout in sample.images]
        vision = dict(processor(images=images, return_tensors="pt"))
        for question in range(sample.questions.max() + 1):
            # Question 0 is the prefix that all share: alone it is a conversation only if there are no others.
            if sample.questions.max() and not question:
                continue
            mine = np.isin(sample.questions, (0, question))
            place = np.cumsum(mine) - 1
            own = mine[sample.target_slot]
            slots = place[sample.target_slot[own]]
            ids = torch.tensor(sample.tokens[mine])[None].long()
            labels = torch.full_like(ids, -100)
            labels[0, slots + 1] = torch.tensor(sample.target_tokens[own]).long()
            model.model.rope_deltas = None
            kind = (ids == model.config.image_token_id).int()
            out = model(**vision, input_ids=ids, attention_mask=ids * 0 + 1, mm_token_type_ids=kind, labels=labels)
            each = torch.nn.functional.cross_entropy(out.logits[0, slots], labels[0, slots + 1], reduction="none")
            torch.testing.assert_close(each.mean(), out.loss, rtol=1e-5, atol=0)
            (each * torch.tensor(sample.target_weight[own]) / weight).sum().backward()
            tokens.append((2 * sample.component + sample.target_later[own], sample.target_weight[own]))
            losses.append(each.detach().numpy())
    return np.concatenate(tokens, 1), np.concatenate(losses), {k: p.grad for k, p in model.named_parameters()}


def test_loss_equals_transformers(worked, reference):
    (group, weight), losses, _ = reference
    ours = worked[1]["one device"]
    assert set(weight) == {1.0, 3.0}
    assert ours["loss"] == pytest.approx((losses * weight).sum() / weight.sum(), rel=1e-5)
    expected = [losses[group == number].sum() for number in range(4)]
    assert all(expected)
    np.testing.assert_allclose(ours["loss_by_group"], expected, rtol=1e-5)


def test_gradient_equals_torch(worked, reference, tiny_model):
    """Every backward pass written by hand (embedding, position table, gathers) against torch's own."""
    ours, theirs = worked[1]["one device"], {}
    for row in parameters.table(VLMConfig.from_dir(tiny_model)):
        values = [row.from_hf(reference[2][key].numpy()) for key in row.hf_keys]
        theirs[row.name] = np.stack(values) if row.stacked else values[0]
        noise = 1e-5 * np.linalg.norm(without_key_bias(ours))
        error = np.linalg.norm(
            without_key_bias({row.name: ours[row.name]}) - without_key_bias({row.name: theirs[row.name]})
        )
        assert error < 1e-4 * np.linalg.norm(theirs[row.name]) + noise, row.name
    assert theirs.keys() == {name for name in ours if not name.startswith("loss")}
    assert difference(ours, theirs) < 1e-5
