"""VLM3 in JAX: Qwen3-VL fine-tuned by plain text supervision into a metric 3-D vision model."""

from vlm3_jax import platforms, xla

__version__ = "0.1.0"

platforms.leave_out_absent_tpu()
xla.set_flags()


def load(path, **options):
    """Opens an HF directory, a finished workdir or a hub name for `.depth`, `.match`, `.pose`, `.ask` and `.chat`.

    `options`: those of `vlm3_jax.api.VLM3` (protocols, longest answer). UserError if there is no such model.
    """
    from vlm3_jax import api

    return api.VLM3(path, **options)
