"""AdamW and its schedules, which run on samples seen: how many a step holds depends on how well they pack."""

import jax
import jax.numpy as jnp
import optax

from vlm3_jax.model import params as parameters
from vlm3_jax.model.config import VLMConfig


def learning_rate(samples, total: int, opt) -> jax.Array:
    """The rate after `samples` of `total` samples.

    A linear warm-up over `opt.warmup` of the run, then "cosine" down to `opt.final`, "constant", or "linear_tail":
    constant, then straight down to `opt.final` of the rate over the last `opt.tail` of the run.
    """
    done = jnp.minimum(samples / total, 1.0).astype(jnp.float32)
    warm = jnp.minimum(done / opt.warmup, 1.0) if opt.warmup else 1.0
    if opt.schedule == "cosine":
        progress = jnp.clip((done - opt.warmup) / (1.0 - opt.warmup), 0.0, 1.0)
        shape = opt.final + (1 - opt.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    elif opt.schedule == "linear_tail":
        shape = 1.0 - (1.0 - opt.final) * jnp.clip((done - (1.0 - opt.tail)) / opt.tail, 0.0, 1.0)
    else:
        shape = 1.0
    return opt.learning_rate * warm * shape


def make(cfg: VLMConfig, opt, rows=None) -> optax.GradientTransformation:
    """Clip by the global norm, Adam, weight decay on matrices; the rate is applied by the step.

    `rows`: those of the trained parameters; None: all of the table.
    """
    rows = parameters.table(cfg) if rows is None else rows
    decayed = parameters.nest({r.path: len(r.hf_shape) > 1 for r in rows})
    parts = [optax.clip_by_global_norm(opt.clip)] if opt.clip else []
    parts.append(optax.scale_by_adam(opt.b1, opt.b2, opt.eps))
    if opt.weight_decay:
        parts.append(optax.add_decayed_weights(opt.weight_decay, decayed))
    return optax.chain(*parts)
