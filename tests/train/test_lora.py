"""Adapters through qwix: what they compute, what they train, what is exported, how they lie on a mesh."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import lora_worker
import numpy as np
import partial_steps
import pytest
import qwix
import torch
from flax import nnx
from partial_steps import Partial, flat, settings
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from tests.model import reference
from tests.support import draw_samples, pack_rows, rows_of_metrics, small_run, write_records
from vlm3_jax import config as configs
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.errors import UserError
from vlm3_jax.model import flops
from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.sizes import released
from vlm3_jax.model.vlm import VLM
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import loop
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps
from vlm3_jax.train.checkpoints import Checkpoints
from vlm3_jax.train.trainable import Trainable

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Every kind of linear: decoder, vision blocks, the merger and those of the taps.
EVERYWHERE = (".*_proj", r"vision\..*\.(qkv|proj|fc1|fc2)")


def make(cfg, **fields) -> Trainable:
    return Trainable.from_config(cfg, settings(**fields))


def random_adapters(trainable, params):
    """All leaves, A and B drawn at random."""
    rng = np.random.default_rng(5)
    drawn = {row.path: 0.05 * rng.standard_normal(row.shape).astype(np.float32) for row in trainable.adapters}
    return trainable.join(params, parameters.nest(drawn))


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """transformers' model beside ours with adapters on every linear; two rows of its samples and the plain logits."""

    pair: reference.Pair
    rows: list
    batch: dict
    plain: np.ndarray
    trainable: Trainable
    compiled: Callable

    def logits(self, params) -> np.ndarray:
        """Of all leaves."""
        with jax.default_matmul_precision("highest"):
            return np.asarray(self.compiled(params, self.batch))


@pytest.fixture(scope="module")
def case() -> Case:
    pair, rng = reference.pair("plain"), np.random.default_rng(0)
    rows = [reference.row(rng, [(24, 16)]), reference.row(rng, [(16, 16), (8, 24)])]
    batch = reference.to_batch(pair, [[row] for row in rows])
    trainable = make(pair.cfg, rank=4, alpha=10.0, targets=EVERYWHERE)
    compiled = jax.jit(lambda p, batch: VLM(pair.cfg, trainable.view(p, jnp.float32)).logits(batch))
    return Case(pair, rows, batch, reference.our_logits(pair, batch), trainable, compiled)


def test_fresh_adapters_change_nothing(case):
    params = case.trainable.start(case.pair.params, seed=0)
    np.testing.assert_allclose(case.logits(params), case.plain, atol=1e-6, rtol=0)
    leaves = parameters.flatten(params)
    for target in case.trainable.lora.targets:
        a, b = (leaves[(*target.path[:-1], f"{target.path[-1]}_lora_{kind}")] for kind in "ab")
        bound = np.sqrt(6 / target.hf_shape[1])
        assert 0.8 * bound < np.abs(a).max() <= bound, target.name
        assert not b.any(), target.name
        if target.stacked and len(a) > 1:
            assert not np.array_equal(a[0], a[1]), target.name
    again, other = (case.trainable.start(case.pair.params, seed) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(other), jax.tree.leaves(params)))


def test_shapes_are_those_that_qwix_makes(case):
    """qwix makes adapters of its own for a linear it sees at work; ours are stacked over layers."""
    contracts = {
        "q_proj": "bsd,dhc->bshc", "o_proj": "bshc,hcd->bsd", "gate_proj": "bsd,df->bsf", "fc2": "bpf,fd->bpd",
        "qkv": "bpd,dthc->bpthc", "proj": "bphc,hcd->bpd",
    }  # fmt: skip

    class Plain(nnx.Module):
        def __init__(self, weight):
            self.weight = nnx.Param(weight)

        def __call__(self, x, contract):
            return jnp.einsum(contract, x, self.weight[...])

    table = {row.path: row for row in case.trainable.rows}
    provider, seen = qwix.LoraProvider(module_path=".*", rank=4, alpha=8.0), set()
    for target in case.trainable.lora.targets:
        if target.path[-1] in contracts and target.stacked:
            contract = contracts[target.path[-1]]
            inputs = contract.split(",")[0]
            sizes = dict(zip(contract.split(",")[1].split("->")[0], target.layer_shape))
            x = jnp.zeros([sizes.get(letter, 1) for letter in inputs])
            made = qwix.apply_lora_to_model(
                Plain(jnp.zeros(target.layer_shape)), provider, x, contract, rngs=nnx.Rngs(0)
            )
            for kind, adapter in (("a", made.weight_lora_a), ("b", made.weight_lora_b)):
                row = table[(*target.path[:-1], f"{target.path[-1]}_lora_{kind}")]
                assert row.layer_shape == adapter.shape
                assert len(row.axes) == len(row.shape)
            seen.add(target.path[-1])
    assert seen == contracts.keys()


def sums(case, params) -> dict:
    """The plain model's parameters by one einsum a weight, in float64."""
    leaves, plain = parameters.flatten(params), {}
    for row in parameters.table(case.pair.cfg):
        value = leaves[row.path].astype(np.float64)
        a, b = (leaves.get((*row.path[:-1], f"{row.path[-1]}_lora_{kind}")) for kind in "ab")
        if a is not None:
            layer, inputs, outputs = (
                "l" * row.stacked,
                "abcdef"[: a.ndim - 1 - row.stacked],
                "uvwx"[: b.ndim - 1 - row.stacked],
            )
            value += 2.5 * np.einsum(f"{layer}{inputs}r,{layer}r{outputs}->{layer}{inputs}{outputs}", a, b)
        plain[row.path] = value.astype(np.float32)
    return parameters.nest(plain)


def test_adapters_act_as_the_merged_weights(case):
    params = random_adapters(case.trainable, case.pair.params)
    plain = reference.our_logits(dataclasses.replace(case.pair, params=sums(case, params)), case.batch)
    valid = case.batch["segments"] > 0
    assert np.abs(plain - case.plain)[valid].max() > 0.5
    assert np.abs(case.logits(params) - plain)[valid].max() < 1e-5


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory) -> Partial:
    partial = Partial(partial_steps.start(tiny_model, tmp_path_factory.mktemp("lora")), settings(rank=4))
    partial.losses = partial.run(20)
    return partial


def test_only_adapters_are_trained(trained):
    assert trained.losses[19] < 0.7 * trained.losses[0]
    changes = trained.changed()
    moved = {path for path, change in changes.items() if change}
    assert moved == {path for path in changes if path[-1].endswith(("_lora_a", "_lora_b"))}
    assert len(moved) == 2 * 2 * 7
    assert parameters.flatten(trained.adam().mu).keys() == moved
    after = flat(trained.state.params)
    for path in moved:
        change = trained.params[path] - after[path]
        assert np.abs(change.reshape(len(change), -1)).max(1).min() > 1e-3, path


def test_no_moments_of_the_base(trained):
    """What the compiled step takes: the base once, adapters three times, the batch."""
    sizes = {path: value.nbytes for path, value in trained.params.items()}
    adapters = sum(size for path, size in sizes.items() if path in trained.trainable.trained)
    batch = sum(value.nbytes for value in trained.batch.values())
    taken = trained.compiled.memory_analysis().argument_size_in_bytes
    held = sum(sizes.values()) + 2 * adapters + batch
    assert held <= taken < held + 64
    assert adapters < 0.2 * sum(sizes.values())


@pytest.mark.parametrize(
    ("freeze", "rank", "billions", "gigabytes", "teraflops"),
    [
        ((), 0, 8.767, 105.2, 120.3),
        (("vision", "merger"), 0, 8.191, 99.4, 107.5),
        (("decoder", "embeddings"), 0, 0.576, 23.3, 88.1),
        ((), 16, 0.0436, 18.06, 75.9),
    ],
)
def test_state_of_the_8b_model(freeze, rank, billions, gigabytes, teraflops):
    """The table of docs/training.md, from shapes: 12 bytes for what is trained, 2 for what is frozen."""
    cfg = released("8b")
    trainable = make(cfg, freeze=freeze, rank=rank, frozen_dtype="bfloat16")
    tx = optimizers.make(cfg, configs.base().optimizer, trainable.trained_rows)
    state = steps.abstract_state(cfg, tx, jax.sharding.AbstractMesh((1, 1, 1), meshes.AXES), trainable)
    count = sum(row.size for row in trainable.trained_rows)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert count == pytest.approx(1e9 * billions, rel=2e-3)
    assert size == pytest.approx(1e9 * gigabytes, rel=2e-3)
    frozen = parameters.count(cfg) - (0 if rank else count)
    assert size == pytest.approx(12 * count + 2 * frozen, rel=1e-3)
    n = 1102 + 1185
    sample = flops.Lengths(n, 4408, 300, n * (n + 1) / 2, 4408**2)
    work = flops.training(cfg, sample, trainable.trained_groups, trainable.adapters)
    assert work == pytest.approx(1e12 * teraflops, rel=2e-3)


def test_adapters_lie_as_their_weights():
    """A as the inputs, B as the outputs, the rank on every device."""
    cfg = released("8b")
    mesh, trainable = jax.sharding.AbstractMesh((1, 4, 2), meshes.AXES), make(cfg, rank=16)
    lying = meshes.param_shardings(cfg, mesh, trainable.rows)["text"]["layers"]
    specs = {name: tuple(leaf.spec) for name, leaf in lying.items() if "_lora_" in name}
    assert specs["q_proj_lora_a"] == specs["up_proj_lora_a"] == (None, "fsdp", None)
    assert specs["q_proj_lora_b"] == (None, None, "tensor", None)
    assert specs["up_proj_lora_b"] == (None, None, "tensor")
    assert specs["o_proj_lora_a"] == (None, "tensor", None, None)
    assert specs["down_proj_lora_a"] == (None, "tensor", None)
    assert specs["o_proj_lora_b"] == specs["down_proj_lora_b"] == (None, None, "fsdp")


@pytest.mark.slow
def test_meshes_agree(trained, tiny_model, tmp_path):
    """fsdp 4 x tensor 2 on eight devices against one."""
    command = [sys.executable, lora_worker.__file__, str(tiny_model), str(tmp_path)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "mesh.npz") as found:
        assert found["losses"][0] == pytest.approx(trained.losses[0], rel=1e-6)
        np.testing.assert_allclose(found["losses"], trained.losses[:4], rtol=1e-5)
        assert str(found["q_proj_lora_a"]) == "(None, 'fsdp', None)"
        assert str(found["q_proj_lora_b"]) == "(None, None, 'tensor', None)"
        assert str(found["o_proj_lora_a"]) == "(None, 'tensor', None, None)"
        assert str(found["o_proj_lora_b"]) == "(None, None, 'fsdp')"


def transformers_logits(folder, pair, parts) -> np.ndarray:
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.config._attn_implementation = "eager"
    return reference.their_logits(dataclasses.replace(pair, theirs=model), parts)


def test_transformers_on_the_merged_weights(case, tmp_path):
    pair = case.pair
    params = random_adapters(case.trainable, pair.params)
    hf.save(tmp_path / "merged", pair.cfg, sums(case, params), pair.folder)
    ours = case.logits(params)
    for row, parts in enumerate(case.rows):
        theirs = transformers_logits(tmp_path / "merged", pair, parts)
        assert np.abs(ours[row, : len(theirs)] - theirs).max() < 1e-4
        assert np.abs(case.plain[row, : len(theirs)] - theirs).max() > 0.1


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """(folder with a whole run and one resumed from its middle, their data, leaves at the end of the whole one)."""
    root = tmp_path_factory.mktemp("runs")
    data, leaves = write_records(root / "data"), {}
    save = Checkpoints.save

    def remember(self, step, state, *rest):
        leaves[step] = jax.device_get(state.params)
        save(self, step, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", remember)
        assert loop.train(lora_run(tiny_model, data, root / "whole"))
        shutil.copytree(root / "whole" / "checkpoints" / "2", root / "resumed" / "checkpoints" / "2")
        assert loop.train(lora_run(tiny_model, data, root / "resumed"))
    return root, data, leaves[4]


def lora_run(model, data, workdir):
    config = small_run(model, data, workdir)
    config.train.max_steps, config.train.save_every, config.eval.loss_batches = 4, 2, 0
    config.train.frozen_dtype, config.train.lora.rank = "bfloat16", 4
    return config


@pytest.mark.slow
def test_resumed_runs_end_bit_equal(runs, tiny_model):
    root, data, _ = runs
    whole, resumed = ([row["loss"] for row in rows_of_metrics(root / name)] for name in ("whole", "resumed"))
    assert len(whole) == 4
    assert whole[2:] == resumed
    one, two = ((root / name / "export" / hf.SINGLE).read_bytes() for name in ("whole", "resumed"))
    assert one == two
    config = lora_run(tiny_model, data, root / "whole")
    config.train.lora.alpha = 8.0
    with pytest.raises(UserError, match=r"the saved run has lora = .*16\.0.*, the configuration .*8\.0.*; use another"):
        loop.train(config)


@pytest.mark.slow
def test_export_of_a_run_is_the_trained_model(runs, tiny_model):
    """Merged, in a directory as any other: what is not adapted is the base's, and transformers gives our logits."""
    root, data, params = runs
    base, after = flat(hf.load(tiny_model)[1]), flat(hf.load(root / "whole" / "export")[1])
    for row in parameters.table(VLMConfig.from_dir(tiny_model)):
        before = base[row.path]
        if len(row.hf_shape) > 1:
            before = before.astype(jnp.bfloat16).astype(np.float32)
        assert (before.tobytes() == after[row.path].tobytes()) == (not row.name.endswith("_proj")), row.name
    samples, spec = draw_samples(tiny_model, data, "turns", 2)
    batch = pack_rows([[s] for s in samples], spec, RowBudget(128, 256, 48))
    cfg = VLMConfig.from_dir(tiny_model)
    trainable = Trainable.from_config(cfg, lora_run(tiny_model, data, root))
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p, batch: VLM(cfg, trainable.view(p, jnp.float32)).logits(batch))
        ours = np.asarray(run(params, batch))
    model = Qwen3VLForConditionalGeneration.from_pretrained(root / "whole" / "export").eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(root / "whole" / "export")
    for row, sample in enumerate(samples):
        images = [Image.fromarray(layout.ref.load()) for layout in sample.images]
        ids = torch.tensor(sample.tokens)[None].long()
        kind = (ids == model.config.image_token_id).int()
        model.model.rope_deltas = None
        with torch.no_grad():
            vision = dict(processor(images=images, return_tensors="pt"))
            theirs = (
                model(**vision, input_ids=ids, attention_mask=ids * 0 + 1, mm_token_type_ids=kind).logits[0].numpy()
            )
        assert np.abs(ours[row, : len(theirs)] - theirs).max() < 1e-4


def with_experts():
    cfg = released("30b-a3b")
    return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, layers=4))


def test_adapters_beside_experts():
    """The default takes attention alone there, and the router can be named."""
    trainable = make(with_experts(), rank=4)
    assert {row.path[-1] for row in trainable.lora.targets} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(make(with_experts(), rank=4, targets=("router",)).lora.targets) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("qproj",)}, r"train\.lora\.targets: 'qproj' names no parameter; linears are fc1, fc2, .*q_proj"),
        ({"targets": ("(",)}, r"train\.lora\.targets: '\(' is not a regular expression"),
        ({"targets": ("q_norm",)}, r"'q_norm' names text\.layers_tap\.q_norm, but only the weights of linears can be"),
        ({"targets": ("experts_in",)}, r"names text\.layers_tap\.experts_in, but weights of experts cannot be adapted"),
        ({"targets": ()}, r"train\.lora\.targets is empty"),
        ({"rank": 512}, r"train\.lora\.rank is 512, but must be below 512, a side of text\.layers_tap\.k_proj"),
        ({"rank": -1}, r"train\.lora: rank -1 and alpha 16\.0 must be positive"),
        ({"alpha": 0.0}, r"train\.lora: rank 4 and alpha 0\.0 must be positive"),
    ],
)
def test_what_cannot_be_adapted_is_refused(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        make(with_experts(), **{"rank": 4} | fields)
    assert "\n" not in str(caught.value)


def test_without_qwix_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    assert make(released("2b")).lora is None
    with pytest.raises(UserError, match=r"train\.lora needs qwix: pip install 'vlm3-jax\[lora\]'"):
        make(released("2b"), rank=4)
