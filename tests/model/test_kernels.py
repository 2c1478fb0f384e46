"""The Pallas kernels equal dense attention, run by interpreters here; and their compilers take them at real sizes."""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vlm3_jax.data.visibility import sparse_rows, visible_blocks
from vlm3_jax.errors import UserError
from vlm3_jax.model import attention
from vlm3_jax.model.attention import BackEnd, Ids
from vlm3_jax.model.block_pairs import Pairs
from vlm3_jax.model.kernels import attend as kernels

BACK_ENDS = {"tpu": BackEnd("pallas", "tpu", True), "gpu": BackEnd("pallas", "gpu", True)}
BLOCK = 16
# Lengths of the segments of two rows (the second has none), heads, kv heads, head size. Text: 8 blocks, the last two
# without a token; the second segment ends in two questions of their own. Images: odd sizes, one within a block.
CASES = {"text": ([7, 45, 33], 8, 2, 16), "images": ([41, 5, 37], 2, 2, 72)}
TOKENS = 128


def _make(name, dtype=jnp.float32):
    """(ids, pairs, arrays [q, k, v, cotangent of the output])."""
    lengths, H, K, C = CASES[name]
    segments = np.zeros((2, TOKENS), np.int32)
    segments[0, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    questions = np.zeros_like(segments)
    if name == "text":
        questions[0, 20:34], questions[0, 34:52] = 1, 2
    listed = [visible_blocks(s, BLOCK, q if name == "text" else None) for s, q in zip(segments, questions)]
    capacity = max(seen.sum() for seen in listed) + 3
    pairs = Pairs(*(jnp.stack(part) for part in zip(*(sparse_rows(seen, capacity) for seen in listed))))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, TOKENS, heads, C)) for heads in (H, K, K, H)]
    arrays[3] *= segments[..., None, None] > 0
    text = (questions, np.broadcast_to(np.arange(TOKENS, dtype=np.int32), segments.shape)) if name == "text" else ()
    ids = jax.tree.map(jnp.asarray, Ids(segments, *text))
    return ids, pairs, [jnp.asarray(x, dtype) for x in arrays]


@functools.cache
def _compiled(name, back_end):
    """(q, k, v, cotangent) -> output and gradients, as numpy arrays; `back_end` None: dense attention."""
    ids, pairs, _ = _make(name)
    chosen = BackEnd("pallas", "gpu") if back_end == "a GPU" else BACK_ENDS.get(back_end)
    if (name, back_end) == ("images", "tpu"):
        # The slower interpreter, which fills what was never written with NaN and minds the ends of memory.
        chosen = dataclasses.replace(chosen, interpret=pltpu.InterpretParams())
    attend = attention.prepare(ids, pairs=pairs if chosen else None, back_end=chosen)

    @jax.jit
    def run(q, k, v, g):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    def found(*arrays):
        with jax.default_matmul_precision("highest"):
            return [np.asarray(x, np.float32) for x in run(*arrays)]

    return found


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_dense_attention(name, back_end):
    ids, pairs, arrays = _make(name)
    used = np.asarray(ids.segments) > 0
    found = _compiled(name, back_end)(*arrays)
    for x, expected in zip(found, _compiled(name, None)(*arrays)):
        np.testing.assert_allclose(x[used], expected[used], atol=1e-5)
    # Blocks that see nothing: nothing is written for them.
    empty = np.diff(np.asarray(pairs.starts)).repeat(BLOCK, 1) == 0
    assert empty.any(1).all()
    for x in found:
        assert not x[empty].any()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_nan_stays(back_end):
    """Who sees a key that is NaN has not seen nothing; gradients tell too."""
    ids, _, arrays = _make("text")
    used = np.asarray(ids.segments) > 0
    arrays[1] = arrays[1].at[0, 20].set(np.nan)
    found, expected = (_compiled("text", each)(*arrays) for each in (back_end, None))
    nan = np.isnan(found[0][used])
    np.testing.assert_array_equal(nan, np.isnan(expected[0][used]))
    assert 0 < nan.mean() < 1
    assert all(np.isnan(x[used]).any() for x in found)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_bfloat16_is_as_far_from_float32_as_dense_attention(back_end):
    _check_bfloat16("text", back_end)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu_bfloat16_is_as_far_from_float32_as_dense_attention(name):
    assert jax.default_backend() == "gpu"
    _check_bfloat16(name, "a GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gpu_kernels_compile_at_real_sizes(dtype):
    for name in REAL:
        gradient, arguments = _real(name, "gpu", dtype=dtype)
        # No matrix of scores.
        assert gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes < 900 << 20


def _check_bfloat16(name, back_end):
    """Mean difference at most 1.25 times that of dense attention in bfloat16, output and every gradient."""
    ids, _, arrays = _make(name)
    used = np.asarray(ids.segments) > 0
    rounded = [x.astype(jnp.bfloat16) for x in arrays]
    exact = _compiled(name, None)(*(x.astype(jnp.float32) for x in rounded))
    found, dense = (_compiled(name, each)(*rounded) for each in (back_end, None))
    for x, other, expected in zip(found, dense, exact):
        ours, theirs = (np.abs(a - expected)[used].mean() for a in (x, other))
        assert 0 < ours <= 1.25 * theirs


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", CASES)
def test_neighbours_stay_bit_equal(name, back_end):
    """Another second segment: the others' outputs and gradients are the same bits."""
    ids, _, arrays = _make(name)
    second = np.asarray(ids.segments)[..., None, None] == 2
    changed = [jnp.where(second, x[:, ::-1] * 3, x) for x in arrays]
    before, after = (_compiled(name, back_end)(*x) for x in (arrays, changed))
    for x, y in zip(before, after):
        others = np.broadcast_to(~second, x.shape)
        np.testing.assert_array_equal(x[others], y[others])
        assert not np.array_equal(x, y)


def test_both_orders_hold_the_same_pairs(rng):
    seen = rng.random((3, 9, 9)) < 0.3
    seen[1] = False
    seen[0, :, 4] = False
    pairs = Pairs(*(jnp.stack(part) for part in zip(*(sparse_rows(row, 40) for row in seen))))
    by_queries, by_keys = jax.tree.map(np.asarray, jax.jit(kernels.both_orders)(pairs))
    for row, blocks in enumerate(seen):
        for order, matrix in ((by_queries, blocks), (by_keys, blocks.T)):
            assert order.starts[row].tolist() == [0, *matrix.sum(1).cumsum()]
            count = matrix.sum()
            listed = order.outer[row, :count], order.inner[row, :count]
            np.testing.assert_array_equal(listed, np.nonzero(matrix))
            # Behind the end nothing else is fetched.
            assert len({*zip(order.outer[row, max(0, count - 1) :], order.inner[row, max(0, count - 1) :])}) == 1


@pytest.mark.slow
def test_devices_take_their_rows_and_heads():
    """On 8 devices, 4 x 2 and 2 x 4: with kv heads cut, repeated, and with heads that cannot be cut."""
    env = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"}
    worker = pathlib.Path(__file__).with_name("kernel_mesh_worker.py")
    subprocess.run([sys.executable, worker], check=True, env=env, timeout=300)


@pytest.mark.parametrize(
    ("name", "platform", "block", "expected"),
    [
        ("auto", "cpu", 128, None), ("auto", "tpu", 128, "tpu"), ("auto", "gpu", 128, "gpu"), ("auto", "tpu", 64, None),
        ("auto", "tpu", 0, None), ("auto", "gpu", 96, None), ("auto", "gpu", 256, None), ("pallas", "tpu", 384, "tpu"),
        ("xla", "gpu", 128, None),
        ("pallas", "gpu", 0, "data.pair_block is 0"), ("pallas", "cpu", 128, "cpu devices"),
        ("pallas", "tpu", 64, "data.pair_block is 64"), ("flash", "gpu", 128, "'flash' is unknown"),
    ],
)  # fmt: skip
def test_platform_and_block_choose(name, platform, block, expected):
    if expected in (None, "tpu", "gpu"):
        assert BackEnd(name, platform).kernels(block) == expected
    else:
        with pytest.raises(UserError, match=expected):
            BackEnd(name, platform).kernels(block)


# Text and vision of the 4B model and the tower of 8B and 32B, a row of the depth recipe: tokens, heads, kv heads, head
# size, kinds of ids, pairs.
REAL = {
    "text": (7168, 32, 8, 128, 3, 640), "vision": (16384, 16, 16, 64, 1, 4500), "wide": (16384, 16, 16, 72, 1, 4500),
}  # fmt: skip


def _real(name, platform, sharding=None, dtype="bfloat16"):
    """The gradient of attention at a real size, and its abstract arguments."""
    S, H, K, C, kinds, pairs = REAL[name]
    shapes = [((1, S, heads, C), jnp.dtype(dtype)) for heads in (H, K, K)] + [((1, S), jnp.int32)] * kinds
    shapes += [((1, S // 128 + 1), jnp.int32), ((1, pairs), jnp.int32)]

    def loss(q, k, v, ids, pairs):
        return attention.prepare(ids, pairs=pairs, back_end=BackEnd("pallas", platform))(q, k, v).sum(dtype=jnp.float32)

    def gradient(q, k, v, *rest):
        return jax.grad(loss, (0, 1, 2))(q, k, v, Ids(*rest[:kinds]), Pairs(*rest[kinds:]))

    return jax.jit(gradient), [jax.ShapeDtypeStruct(*shape, sharding=sharding) for shape in shapes]


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in REAL), ("text", "float32")])
def test_gpu_kernels_lower_to_triton(name, dtype):
    gradient, arguments = _real(name, "gpu", dtype=dtype)
    lowered = gradient.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in lowered.splitlines() if "__gpu$xla.gpu.triton" in line]
    assert [f'name = "attention_{part}"' in call for part, call in zip(("forward", "query", "key"), calls)] == [
        True
    ] * 3


# Without the compiler left to `make test-tpu`, which then fails and says what to install.
needs_compiler = [] if importlib.util.find_spec("libtpu") else [pytest.mark.tpu]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[*needs_compiler, *[pytest.mark.slow] * (name != "text")]) for name in REAL]
)
def test_tpu_kernels_compile(name):
    from vlm3_jax.planning.compile import tpu_devices

    sharding = jax.sharding.SingleDeviceSharding(tpu_devices("v5e:2x2")[0])
    gradient, arguments = _real(name, "tpu", sharding)
    compiled = gradient.lower(*arguments).compile()
    assert compiled.as_text().count("tpu_custom_call") >= 3
    # No matrix of scores: those of a single head would be 98 MiB in text and 512 MiB in vision.
    assert compiled.memory_analysis().temp_size_in_bytes < 450 << 20
