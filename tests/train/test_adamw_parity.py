"""Ten steps of training against torch: transformers' model, torch's AdamW, the same batches."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from tests.support import draw_samples, pack_rows, write_records
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.parallel import mesh as meshes
from vlm3_jax.train import optimizer as optimizers
from vlm3_jax.train import step as steps

OPTIMIZER = types.SimpleNamespace(
    learning_rate=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, clip=0.02, schedule="cosine", warmup=0.2,
    final=0.0, tail=0.25,
)  # fmt: skip
STEPS, PER_STEP = 10, 3


def ours(model_dir, samples, spec) -> tuple[list[float], list[float]]:
    """(losses, rates) of ten packed steps."""
    cfg, params = hf.load(model_dir)
    tx, mesh = optimizers.make(cfg, OPTIMIZER), meshes.make_mesh()
    step = steps.make_step(
        cfg, tx, OPTIMIZER, mesh, total_samples=STEPS * PER_STEP, groups=4, dtype=jnp.float32, remat="none"
    )
    state, found = steps.create_state(cfg, params, tx, mesh), []
    for first in range(0, len(samples), PER_STEP):
        batch = pack_rows([samples[first : first + 2], samples[first + 2 : first + 3]], spec, RowBudget(208, 304, 48))
        state, metrics = step(state, batch, np.int32(PER_STEP))
        found.append((float(metrics["loss"]), float(metrics["lr"])))
    return tuple(map(list, zip(*found)))


def theirs(model_dir, samples, rates) -> list[float]:
    """Losses of the same ten steps, sample by sample, at the given rates."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(model_dir)
    processor = Qwen2VLImageProcessorPil.from_pretrained(model_dir)
    # Weight decay on matrices only, as everywhere in language models.
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    losses = []
    for number, rate in enumerate(rates):
        batch = samples[number * PER_STEP : (number + 1) * PER_STEP]
        weight, total = sum(s.target_weight.sum() for s in batch), 0.0
        for s in batch:
            images = [Image.fromarray(layout.ref.load()) for layout in s.images]
            ids = torch.tensor(s.tokens)[None].long()
            model.model.rope_deltas = None
            kind = (ids == model.config.image_token_id).int()
            vision = dict(processor(images=images, return_tensors="pt"))
            logits = model(**vision, input_ids=ids, attention_mask=ids * 0 + 1, mm_token_type_ids=kind).logits[0]
            each = torch.nn.functional.cross_entropy(
                logits[s.target_slot], torch.tensor(s.target_tokens).long(), reduction="none"
            )
            loss = (each * torch.tensor(s.target_weight) / weight).sum()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip)
        for group in adamw.param_groups:
            group["lr"] = rate
        adamw.step()
        adamw.zero_grad()
        losses.append(total)
    return losses


def test_ten_steps_equal_torch(tiny_model, tmp_path):
    samples, spec = draw_samples(tiny_model, write_records(tmp_path / "data"), "turns", STEPS * PER_STEP)
    losses, rates = ours(tiny_model, samples, spec)
    assert max(rates) == rates[1] == pytest.approx(OPTIMIZER.learning_rate)
    np.testing.assert_allclose(losses, theirs(tiny_model, samples, rates), rtol=1e-5)
    assert losses[0] - losses[-1] > 0.05, "nothing was learnt, so the update was not seen"
    assert pytest.approx(losses[1], rel=1e-4) != losses[2]
