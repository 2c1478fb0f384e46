"""Attention by kernels on meshes of 8 devices against XLA on one device; started by test_kernels.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vlm3_jax.data.visibility import sparse_rows, visible_blocks
from vlm3_jax.model import attention
from vlm3_jax.model.attention import BackEnd, Ids
from vlm3_jax.model.block_pairs import Pairs
from vlm3_jax.model.layers import run_as_it_is
from vlm3_jax.parallel import mesh as meshes

BLOCK, TOKENS, C = 16, 32, 8
XLA, KERNELS = BackEnd("xla"), BackEnd("pallas", "tpu", True)


def main() -> None:
    """Raises where outputs or gradients differ."""
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 4, (4, TOKENS)).astype(np.int32))
    listed = [visible_blocks(row, BLOCK) for row in segments]
    pairs = Pairs(*(np.stack(part) for part in zip(*(sparse_rows(seen, 5) for seen in listed))))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def gradients(back_end, locally, q, k, v, g, segments, pairs):
        attend = attention.prepare(Ids(segments), pairs=pairs, locally=locally, back_end=back_end)
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(g)

    # Heads and kv heads, mesh: kv heads cut, repeated for a device each, and 3 heads that 2 devices cannot share.
    for H, K, shape in ((4, 2, (1, 4, 2)), (8, 2, (1, 2, 4)), (3, 1, (2, 2, 2))):
        arrays = [rng.standard_normal((4, TOKENS, heads, C)).astype(np.float32) for heads in (H, K, K, H)]
        expected = gradients(XLA, run_as_it_is, *arrays, segments, pairs)
        mesh = meshes.make_mesh(*shape)
        placed = jax.device_put((*arrays, segments, pairs), meshes.batch_sharding(mesh))
        found = gradients(KERNELS, meshes.locally(mesh), *placed)
        for x, y in zip(found, expected):
            np.testing.assert_allclose(jnp.asarray(x), y, atol=2e-6, err_msg=f"{H} heads, {K} kv heads on {shape}")


if __name__ == "__main__":
    main()
