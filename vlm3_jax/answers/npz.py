"""Answers as arrays in an .npz, beside them `facts`: a JSON text with the camera and what the map holds."""

import io
import json

import numpy as np

from vlm3_jax.answers.values import Depth, Match, RelativePose, camera_facts, depth_facts


def encode_depth(depth: Depth, photo) -> bytes:
    """points_px, distance_m, z_m, answers, K; of a dense map `depth` [H, W] of `kind`, as `vlm3 score` reads it, and
    with a spread `depth_median`, `depth_deviation`, `depth_low` and `depth_high` (these two of a calibrated model).
    """
    arrays = {"points_px": depth.points_px, "distance_m": depth.distance_m, "z_m": depth.z_m}
    arrays |= {"answers": _texts(depth.answers), "K": depth.camera.matrix, "kind": np.array(depth.kind)}
    if depth.dense is not None:
        arrays["depth"] = depth.map_m()
        arrays |= {f"depth_{name}": values for name, values in depth.spread_maps().items()}
    if (spread := depth.spread) is not None:
        names = "expected_m", "median_m", "deviation_m", "covered", "low_m", "high_m"
        arrays |= {name: getattr(spread, name) for name in names} | {"level": np.array(spread.level)}
    return _bytes(arrays, {"image": photo.name} | depth_facts(depth))


def encode_match(match: Match, photos) -> bytes:
    """points_px and matches_px [N, 2] (NaN: none), outside [N], answers, K1 and K2."""
    arrays = {"points_px": match.points_px, "matches_px": match.matches_px, "outside": match.outside}
    return _bytes(arrays | {"answers": _texts(match.answers)} | _matrices(match), _facts(match, photos))


def encode_pose(pose: RelativePose, photos) -> bytes:
    """cam1_T_cam2 [4, 4], rotation, direction, distance_m (NaN: unknown), K1 and K2."""
    arrays = {"cam1_T_cam2": pose.cam1_T_cam2(), "rotation": pose.rotation, "direction": pose.direction}
    facts = _facts(pose, photos) | {"answers": pose.answers, "metric": pose.metric}
    return _bytes(arrays | {"distance_m": np.array(pose.distance_m)} | _matrices(pose), facts)


def _matrices(answer: Match | RelativePose) -> dict[str, np.ndarray]:
    return {"K1": answer.cameras[0].matrix, "K2": answer.cameras[1].matrix}


def _facts(answer: Match | RelativePose, photos) -> dict:
    cameras = [camera_facts(camera, source) for camera, source in zip(answer.cameras, answer.camera_sources)]
    return {"images": [photo.name for photo in photos], "cameras": cameras}


def _texts(texts) -> np.ndarray:
    """Fixed-width text, so that reading needs no pickle."""
    return np.array(texts, np.str_)


def _bytes(arrays: dict, facts: dict) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.array(json.dumps(facts, ensure_ascii=False)), **arrays)
    return buffer.getvalue()
