"""What a decoding step costs: the caches are written where they lie, and greedy answers do not pay for sampling."""

import jax
import jax.numpy as jnp
import pytest

from vlm3_jax.infer.decode import Context, State, programs
from vlm3_jax.infer.sampling import Draw
from vlm3_jax.model import params as parameters
from vlm3_jax.model.sizes import released

B, Q, S, M, N = 4, 8, 64, 16, 240
CFG = released("cpu")


@pytest.fixture(scope="module", params=["greedy", "sampled"])
def lowered(request):
    """(The decoding program for given sizes, not yet compiled; its caches' bytes: prefix, own)."""
    shape, text, caches = jax.ShapeDtypeStruct, CFG.text, ([], [])
    params = parameters.nest({row.path: shape(row.shape, jnp.float32) for row in parameters.table(CFG)})
    stacks = {name: len(params["text"][name]["norm1"].shape) and params["text"][name]["norm1"].shape[0]
              for name in params["text"] if name.startswith("layers")}  # fmt: skip
    sizes = (B, text.kv_heads, S, text.head_dim), (B, Q, text.kv_heads, M + N, text.head_dim)
    caches = [{k: (shape((n, *size), jnp.float32),) * 2 for k, n in stacks.items()} for size in sizes]
    context = Context(caches[0], shape((B, S), bool), shape((B, Q), jnp.int32), shape((B,), jnp.int32))
    used, draw = None, None
    if request.param == "sampled":
        used, real = shape((B, Q, text.vocab_size), bool), shape((), jnp.float32)
        draw = Draw(shape((B, Q, 2), jnp.uint32), real, real, shape((), jnp.int32), real)
    state = State(shape((), jnp.int32), shape((B, Q, N), jnp.int32), shape((B, Q), bool), caches[1], used)
    scalar, stops = shape((), jnp.int32), shape((2,), jnp.int32)
    program = programs(CFG, jnp.float32).proceed.lower(params, context, state, scalar, stops, draw)
    sizes = [sum(x.size * 4 for x in jax.tree.leaves(cache)) for cache in caches]
    return request.param, program, *sizes


def test_a_step_copies_no_cache(lowered):
    _, program, _, own = lowered
    memory = program.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= own, "the caches come back in the memory in which they were given"
    # One layer's keys and values at a time, and no second set of caches.
    assert memory.temp_size_in_bytes < 2.5 * own / CFG.text.layers


def test_greedy_answers_do_not_pay_for_sampling(lowered):
    name, program, _, _ = lowered
    assert ("threefry" in program.as_text()) == (name == "sampled")
