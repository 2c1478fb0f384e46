"""Procedural rooms and grounds with exact labels for all four tasks.

`record(seed, index, options)` makes one labelled pair, `render_views` the same with dense maps, `build` a folder of
ArrayRecord shards.
"""

from vlm3_jax.synth.options import SynthOptions
from vlm3_jax.synth.pairs import Views, record, render_views
from vlm3_jax.synth.shards import build

__all__ = ["SynthOptions", "Views", "build", "record", "render_views"]
