"""Records: what every source yields, whatever the data set looked like on disk, and their bytes."""

from vlm3_jax.records.codec import from_bytes, to_bytes
from vlm3_jax.records.conversation import Conversation, Turn
from vlm3_jax.records.dense import DepthMap, Mask, encode_depth, encode_mask, place_depth, place_mask
from vlm3_jax.records.labels import MAX_DEPTH_M, DepthPoints, Matches, Objects
from vlm3_jax.records.pairs import draw_labels
from vlm3_jax.records.record import (
    FORMATS,
    LABELS,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    ImageRef,
    Record,
    Removed,
    View,
    as_rgb,
    encode_image,
    flip,
    keep_inside,
    keep_sound,
    orientation,
    removed_parts,
    unify,
    with_cameras,
)

__all__ = [
    "FORMATS",
    "LABELS",
    "MAX_DEPTH_M",
    "MAX_IMAGE_BYTES",
    "MAX_IMAGE_PIXELS",
    "Conversation",
    "DepthMap",
    "DepthPoints",
    "ImageRef",
    "Mask",
    "Matches",
    "Objects",
    "Record",
    "Removed",
    "Turn",
    "View",
    "as_rgb",
    "draw_labels",
    "encode_depth",
    "encode_image",
    "encode_mask",
    "flip",
    "from_bytes",
    "keep_inside",
    "keep_sound",
    "orientation",
    "place_depth",
    "place_mask",
    "removed_parts",
    "to_bytes",
    "unify",
    "with_cameras",
]
