"""A depth answer as a point cloud in a binary PLY: metres, x right, y down, z forward, colours of the photo."""

import json

import numpy as np

from vlm3_jax.answers import cloud
from vlm3_jax.answers.values import Depth, depth_facts

_VERTEX = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


def encode_depth(depth: Depth, photo) -> bytes:
    """Vertices with colours; comments of the header hold the frame, the unit, the kind and the camera (JSON)."""
    points = cloud.of_depth(depth, photo.pixels)
    facts = {"kind": depth.kind} | depth_facts(depth)
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward; made by vlm3_jax",
        f"comment vlm3 {json.dumps(facts)}",
        f"element vertex {len(points.points_m)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {colour}" for colour in ("red", "green", "blue")),
        "end_header",
    ]
    vertices = np.zeros(len(points.points_m), _VERTEX)
    vertices["xyz"], vertices["rgb"] = points.points_m, points.colours
    return "\n".join([*lines, ""]).encode("ascii") + vertices.tobytes()
