"""Experts: the layer against a loop over tokens, the balance loss against transformers', both layouts on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.model import reference as ref
from vlm3_jax.checkpoint import hf
from vlm3_jax.errors import UserError
from vlm3_jax.model import moe
from vlm3_jax.model.config import VLMConfig
from vlm3_jax.model.layers import Group
from vlm3_jax.model.vlm import VLM

E, D, F, K = 5, 12, 7, 2


@pytest.fixture
def layer(rng):
    shapes = {"router": (D, E), "experts_in": (E, D, 2, F), "experts_out": (E, F, D)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def by_token(layer, x_BSD):
    """The layer as published, token by token (jax, so that it has a gradient): softmax, best K scaled to 1, SwiGLU."""

    def token(x):
        logits = x @ layer["router"]
        p = jnp.exp(logits - logits.max())
        p = p / p.sum()
        best = jnp.argsort(-p)[:K]
        out = 0.0
        for expert in best:
            gate, up = (x @ layer["experts_in"][expert, :, i] for i in (0, 1))
            out += p[expert] / p[best].sum() * ((gate / (1 + jnp.exp(-gate)) * up) @ layer["experts_out"][expert])
        return out

    return jnp.stack([jnp.stack([token(x) for x in row]) for row in x_BSD])


def test_layer_and_gradient_equal_a_loop_over_tokens(layer, rng):
    x = rng.standard_normal((2, 5, D)).astype(np.float32)
    weight = rng.standard_normal(x.shape).astype(np.float32)

    def grouped(layer, x):
        return (moe.feed_forward(Group(layer), x, K)[0] * weight).sum()

    def looped(layer, x):
        return (by_token(layer, x) * weight).sum()

    with jax.default_matmul_precision("highest"):
        ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1)))(layer, x) for f in (grouped, looped))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_all_tokens_to_the_same_experts(layer, rng):
    """Experts without tokens are groups of size 0."""
    x = np.abs(rng.standard_normal((1, 6, D))).astype(np.float32)
    layer["router"] = np.zeros((D, E), np.float32)
    layer["router"][:, 3], layer["router"][:, 1] = 2, 1
    out, (counts, _) = moe.feed_forward(Group(layer), x, K, np.ones((1, 6), bool))
    assert counts.tolist() == [0, 6, 0, 6, 0]
    np.testing.assert_allclose(out, by_token(layer, x), rtol=2e-4, atol=2e-4)


def test_balance_loss_equals_transformers(rng):
    pair = ref.pair("moe")
    samples = [ref.row(rng, sizes) for sizes in ([(40, 24)], [], [(16, 56), (24, 24)])]
    for sample in samples:
        inputs = ref.their_inputs(pair, sample)
        pair.theirs.model.rope_deltas = None
        with torch.no_grad():
            theirs = pair.theirs(**inputs, output_router_logits=True).aux_loss.item()
        # The rest of the row is empty and must not count.
        batch = ref.to_batch(pair, [[sample], []])
        ours = VLM(pair.cfg, pair.params).hidden_and_balance(batch)[1]
        assert float(ours) == pytest.approx(theirs, rel=1e-5)
        assert theirs > pair.cfg.text.experts_per_token


def test_both_orders_of_the_experts_axes_are_read(tmp_path):
    """Released checkpoints hold [E, in, out], transformers saves [E, out, in]."""
    pair = ref.pair("moe")
    released = hf.save(tmp_path / "released", pair.cfg, pair.params, pair.folder)
    _, params = hf.load(released)
    jax.tree.map(np.testing.assert_array_equal, params, pair.params)
    loaded = type(pair.theirs).from_pretrained(released)
    for (name, a), b in zip(pair.theirs.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"mlp_only_layers": [1]}, "mlp_only_layers"),
        ({"norm_topk_prob": False}, "norm_topk_prob"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"moe_intermediate_size": 24}, "moe_intermediate_size"),
        ({"num_local_experts": None}, "num_local_experts"),
    ],
)
def test_what_is_not_supported_is_named(change, message):
    tree = ref.pair("moe").theirs.config.to_dict()
    tree["text_config"] |= change
    with pytest.raises(UserError, match=message):
        VLMConfig.from_hf(tree)
