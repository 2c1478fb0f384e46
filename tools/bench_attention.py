r"""Time of attention by back end, forward and backward, on packed rows. Needs neither grain nor ml_collections.

    python tools/bench_attention.py                      (the recipe's rows on a GPU or TPU, small ones on a CPU)
    python tools/bench_attention.py --back-ends pallas --block 256
    python tools/bench_attention.py --back-ends pallas --tiling FORWARD=128,8,2 --tiling KEYS=32,8,3     (GPU)

Rows: three samples of the depth mixture's mean length in 7,168 tokens, and their images in 16,384 patches, with the
heads of the 4B model, and those of the tower that 8B and 32B have. "pallas" and "xla" work through pairs of blocks,
"dense" through whole rows, and "unpacked" is `jax.nn.dot_product_attention` with a sample a row and no padding (cuDNN
on a GPU): what packing has to stand up to.

"difference": the largest one from "dense" in float32, of output and gradients on used tokens, over the largest value
there. Look at it first; "dense" in bfloat16 says what is usual. Useful FLOPs are counted by true lengths, without
recomputation: 4 * heads * head size for each pair of tokens forward, twice that backward.
"""

import argparse
import dataclasses
import functools
import json
import time

import checkout  # noqa: F401
import jax
import jax.numpy as jnp
import numpy as np

from vlm3_jax.data.visibility import sparse_rows, visible_blocks
from vlm3_jax.errors import UserError
from vlm3_jax.model import attention, flops
from vlm3_jax.model.attention import BackEnd, Ids
from vlm3_jax.model.block_pairs import Pairs

NAMES = ("pallas", "xla", "dense", "unpacked")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A row of `tokens` that holds `count` equal samples (or images)."""

    tokens: int
    length: int
    count: int
    heads: int
    kv_heads: int
    head_size: int
    causal: bool

    @property
    def useful(self) -> float:
        """FLOPs of a row, forward and backward."""
        pairs = self.length * (self.length + 1) / 2 if self.causal else self.length**2
        return 12.0 * self.heads * self.head_size * pairs * self.count


RECIPE = {
    "text": Shape(7168, 2264, 3, 32, 8, 128, True),
    "vision": Shape(16384, 4320, 3, 16, 16, 64, False),
    "vision of 8B and 32B": Shape(16384, 4320, 3, 16, 16, 72, False),
}
SMALL = {
    "text": Shape(1024, 330, 3, 8, 2, 64, True),
    "vision": Shape(2048, 620, 3, 4, 4, 72, False),
}


def attend_with(name: str, shape: Shape, rows: int, block: int):
    """(function of q, k, v, rows and tokens of those)."""
    if name == "unpacked":
        implementation = "cudnn" if jax.default_backend() == "gpu" else "xla"
        attend = functools.partial(jax.nn.dot_product_attention, is_causal=shape.causal, implementation=implementation)
        return attend, rows * shape.count, shape.length
    segments = np.zeros(shape.tokens, np.int32)
    segments[: shape.length * shape.count] = np.repeat(np.arange(1, shape.count + 1), shape.length)
    numbers = np.arange(shape.tokens, dtype=np.int32)
    text = (np.zeros_like(segments), numbers) if shape.causal else ()
    seen = visible_blocks(segments, block, *text[:1])
    ids = Ids(*(jnp.tile(x, (rows, 1)) for x in (segments, *text)))
    pairs = Pairs(*(jnp.tile(x, (rows, 1)) for x in sparse_rows(seen, seen.sum())))
    back_end = BackEnd(name, jax.default_backend())
    return (
        attention.prepare(ids, pairs=None if name == "dense" else pairs, back_end=back_end), rows, shape.tokens,
    )  # fmt: skip


def inputs(shape: Shape, rows: int, tokens: int, dtype) -> list[jax.Array]:
    """Random q, k, v and cotangent of the output, which is zero behind the samples."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    q, k, v, g = (
        jax.random.normal(key, (rows, tokens, h, shape.head_size), jnp.dtype(dtype)) for key, h in zip(keys, heads)
    )
    used = jnp.arange(tokens) < shape.length * shape.count
    return [q, k, v, g * used[:, None, None].astype(g.dtype)]


def with_gradients(attend):
    """(q, k, v, cotangent) -> the output and the gradients, jitted."""

    @jax.jit
    def run(q, k, v, g):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    return run


@functools.cache
def exact(shape: Shape, rows: int, block: int, dtype: str) -> list[np.ndarray]:
    """What dense attention in float32 gives for the inputs in `dtype`."""
    attend, rows, tokens = attend_with("dense", shape, rows, block)
    arrays = [x.astype(jnp.float32) for x in inputs(shape, rows, tokens, dtype)]
    with jax.default_matmul_precision("highest"):
        return [np.asarray(x) for x in with_gradients(attend)(*arrays)]


def difference(shape: Shape, found, expected) -> float:
    """The largest difference on used tokens over the largest value, of the worst of output and gradients."""
    used = shape.length * shape.count
    pairs = [(np.asarray(x, np.float32)[:, :used], y[:, :used]) for x, y in zip(found, expected)]
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def measure(name: str, shape: Shape, peak: float, args) -> dict:
    """Seconds of forward and backward together, useful FLOP/s of them, and how far off the results are."""
    attend, rows, tokens = attend_with(name, shape, args.rows, args.block)
    run, arrays = with_gradients(attend), inputs(shape, rows, tokens, args.dtype)
    start = time.perf_counter()
    found = jax.block_until_ready(run(*arrays))
    first, times = time.perf_counter() - start, []
    for _ in range(args.steps):
        start = time.perf_counter()
        jax.block_until_ready(run(*arrays))
        times.append(time.perf_counter() - start)
    median = float(np.median(times))
    useful = shape.useful * args.rows
    row = {
        "first_s": round(first, 2),
        "ms": {"median": 1e3 * median, "min": 1e3 * min(times), "max": 1e3 * max(times)},
        "useful_tflop_per_s": useful / median / 1e12,
        "of_peak": useful / median / peak,
    }
    if name != "unpacked":
        row["difference"] = difference(shape, found, exact(shape, args.rows, args.block, args.dtype))
    return row


def main() -> None:
    """Prints a line of JSON for each shape and back end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=("recipe", "small"), help="(small on a CPU, else recipe)")
    parser.add_argument("--back-ends", default=",".join(NAMES), help=f"({','.join(NAMES)})")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    for name, default, text in (
        ("rows", 1, "rows of the batch"), ("block", 128, "tokens of a block"), ("steps", 10, "timed steps"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--tiling", action="append", default=[], metavar="KERNEL=STEP,WARPS,STAGES", help="GPU only")
    args = parser.parse_args()
    for setting in args.tiling:
        from vlm3_jax.model.kernels import gpu

        kernel, _, numbers = setting.partition("=")
        setattr(gpu, kernel, gpu.Tiling(*map(int, numbers.split(","))))
    peak = flops.peak(jax.devices()[0])[0]
    small = args.shapes == "small" or (args.shapes is None and jax.default_backend() == "cpu")
    for label, shape in (SMALL if small else RECIPE).items():
        for name in args.back_ends.split(","):
            row = {"shape": label, "back_end": name, "block": args.block, "dtype": args.dtype}
            try:
                row |= measure(name, shape, peak, args)
            except UserError as error:
                row["left_out"] = str(error)
            except (ValueError, jax.errors.JaxRuntimeError) as error:
                # What a library or the compiler refuses (cuDNN float32, for one) costs this line only.
                row["failed"] = str(error).splitlines()[0][:200]
            print(json.dumps(row | {"device": jax.devices()[0].device_kind}), flush=True)


if __name__ == "__main__":
    main()
