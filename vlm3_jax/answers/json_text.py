"""Answers as JSON: every point with its text, NaN written as null."""

import json

import numpy as np

from vlm3_jax.answers.values import Depth, Match, RelativePose, camera_facts, depth_facts
from vlm3_jax.pose import euler_from_matrix

VERSION = 1


def encode_depth(depth: Depth, photo) -> bytes:
    """Points (px of the upright image) with distance, z and the model's text."""
    columns = {"x": depth.points_px[:, 0], "y": depth.points_px[:, 1], "distance_m": depth.distance_m, "z_m": depth.z_m}
    if (spread := depth.spread) is not None:
        columns |= {"expected_m": spread.expected_m, "median_m": spread.median_m, "deviation_m": spread.deviation_m}
        columns |= {"low_m": spread.low_m, "high_m": spread.high_m, "covered": spread.covered}
    rows = [dict(zip(columns, map(_plain, row))) for row in zip(*columns.values(), strict=True)]
    for row, text in zip(rows, depth.answers, strict=True):
        row["answer"] = text
    facts = {"task": "depth", "image": photo.name, "kind": depth.kind} | depth_facts(depth)
    if spread is not None:
        facts["level"] = _plain(spread.level)
    return _bytes(facts | {"points": rows})


def encode_match(match: Match, photos) -> bytes:
    """Points of the first image (px) and where they are in the second."""
    rows = []
    for a, b, outside, text in zip(match.points_px, match.matches_px, match.outside, match.answers, strict=True):
        numbers = dict(zip(("x1", "y1", "x2", "y2"), map(_plain, (*a, *b))))
        rows.append(numbers | {"outside": bool(outside), "answer": text})
    return _bytes({"task": "match"} | _pair_facts(match, photos) | {"unread": match.unread, "points": rows})


def encode_pose(pose: RelativePose, photos) -> bytes:
    """The second camera in the frame of the first: matrix, Euler angles (degrees), unit direction, metres."""
    known = np.isfinite(pose.rotation).all()
    angles = euler_from_matrix(pose.rotation) if known else (np.nan,) * 3
    facts = {"task": "pose"} | _pair_facts(pose, photos) | {"metric": pose.metric}
    facts |= {"cam1_T_cam2": _plain(pose.cam1_T_cam2()), "frame": "x right, y down, z forward"}
    facts |= dict(zip(("yaw_deg", "pitch_deg", "roll_deg"), map(_plain, angles)))
    return _bytes(
        facts
        | {"direction": _plain(pose.direction), "distance_m": _plain(pose.distance_m)}
        | {"unit": "metres" if pose.metric else "the length of the motion", "answers": pose.answers}
    )


def _pair_facts(answer: Match | RelativePose, photos) -> dict:
    cameras = [camera_facts(camera, source) for camera, source in zip(answer.cameras, answer.camera_sources)]
    return {"images": [photo.name for photo in photos], "cameras": cameras}


def _plain(value):
    """Numbers and arrays as JSON has them; NaN becomes null."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [_plain(part) for part in value]
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) else (round(value, 6) if np.isfinite(value) else None)


def _bytes(tree: dict) -> bytes:
    return (json.dumps({"version": VERSION} | tree, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
