"""What the backward pass finds under remat "minimal": each named activation once."""

import math

import jax
import jax.numpy as jnp
import pytest

from tests.support import draw_samples, pack_rows, write_records
from vlm3_jax.checkpoint import hf
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.model.attention import BackEnd
from vlm3_jax.train import step as steps

PAIRS = {"pair_block": 16, "pairs": 300, "patch_pairs": 500}
CASES = {
    "dense": ({}, BackEnd("xla")),
    "pairs": (PAIRS, BackEnd("xla")),
    "kernels": (PAIRS, BackEnd("pallas", "gpu", interpret=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_of_attention_are_kept_once(name, tiny_model, tmp_path):
    lists, back_end = CASES[name]
    cfg, params = hf.load(tiny_model)
    drawn, spec = draw_samples(tiny_model, write_records(tmp_path, 8), "independent", 2)
    batch = pack_rows([drawn], spec, RowBudget(256, 320, 64, **lists))
    tokens, patches = batch["segments"].shape[1], batch["patch_images"].shape[1]

    def kept(params):
        def loss(params):
            return steps.loss_sums(cfg, params, batch, 4, jnp.float32, "minimal", back_end=back_end)[0]

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    shapes = [x.shape for x in jax.eval_shape(kept, params)]

    def layers(tokens, heads, head_dim):
        """How many layers keep an array of so many heads, in whatever order of axes; twice if they keep two."""
        size = tokens * heads * head_dim
        return sum(shape[0] for shape in shapes if shape[-1:] == (head_dim,) and math.prod(shape[1:]) == size)

    t, v = cfg.text, cfg.vision
    # Queries and the output; in the tower queries lie in one array with keys and values.
    assert layers(tokens, t.heads, t.head_dim) == 2 * t.layers
    assert layers(patches, v.heads, v.head_dim) == v.depth
