"""What a decoding step costs: the caches are written where they lie, and greedy answers do not pay for sampling."""

import jax
import jax.numpy as jnp
import pytest

from vlm3_jax.infer.decode import Context, Until, programs
from vlm3_jax.infer.sampling import Draw
from vlm3_jax.model import params as parameters
from vlm3_jax.model.sizes import released

B, Q, S, M, N = 4, 8, 64, 16, 240
CFG = released("cpu")


@pytest.fixture(scope="module", params=["greedy", "sampled"])
def lowered(request):
    """(The decoding program for given sizes, not yet compiled; the bytes of the questions' own caches)."""
    shape, drawn = jax.ShapeDtypeStruct, request.param == "sampled"
    params = parameters.nest({row.path: shape(row.shape, jnp.float32) for row in parameters.table(CFG)})
    text = {name: layers(value) if isinstance(value, dict) else value for name, value in params["text"].items()}
    params = {**params, "text": text}
    prefix = (B, CFG.text.kv_heads, CFG.text.head_dim, S), (B, CFG.text.kv_heads, S, CFG.text.head_dim)
    caches = {
        name: [tuple(shape(one, jnp.float32) for one in prefix) for _ in of_stack]
        for name, of_stack in text.items()
        if isinstance(of_stack, list)
    }
    context = Context(caches, shape((B, S), bool), shape((B,), jnp.int32), shape((B, S), jnp.int32))
    run = programs(CFG, jnp.float32)
    state = jax.eval_shape(lambda c: run.open(c, places=Q, columns=M + N, room=N, drawn=drawn), context)
    scalar, stops = shape((), jnp.int32), shape((2,), jnp.int32)
    real = shape((), jnp.float32)
    draw = Draw(None, real, real, scalar, real) if drawn else None
    until = Until(scalar, scalar, shape((B,), bool), scalar)
    program = run.proceed.lower(params, context, state, until, stops, draw)
    return request.param, program, sum(x.size * 4 for x in jax.tree.leaves(state.own))


def layers(stack: dict) -> list[dict]:
    """As `weights.layer_by_layer`, of shapes."""
    count = len(stack["norm1"].shape) and stack["norm1"].shape[0]
    return [{k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in stack.items()} for _ in range(count)]


def test_a_step_copies_no_cache(lowered):
    _, program, own = lowered
    memory = program.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= own, "the caches come back in the memory in which they were given"
    # A layer's keys or values at a time, if any, and no second set of caches.
    assert memory.temp_size_in_bytes < own / CFG.text.layers


def test_greedy_answers_do_not_pay_for_sampling(lowered):
    name, program, _ = lowered
    assert ("threefry" in program.as_text()) == (name == "sampled")
