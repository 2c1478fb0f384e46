"""Pairs asked about both ways: whether the second answer is the first one turned round."""

import numpy as np

from vlm3_jax import pose

SWAPPED = " (swapped)"
"""Ends the component of pairs that are asked about a second time, the other way round."""


def consistency(parsed, targets, swapped_parsed, swapped_targets) -> dict[str, float]:
    """How far the answers to (A, B) are from the inverse of those to (B, A), which needs no truth.

    `swap_rotation_deg` and `swap_direction_deg`: medians over the `swap_pairs` whose answers of both ways can be read
    (NaN if there is none). Rotations should be each other's inverse, and the motions one line in space.
    """
    first, second = _by_pair(parsed, targets), _by_pair(swapped_parsed, swapped_targets)
    rotations, directions = [], []
    for pair in first.keys() & second.keys():
        (R, t), (R_back, t_back) = first[pair], second[pair]
        rotations.append(pose.rotation_angle(R @ R_back))
        directions.append(pose.direction_angle(t, -R @ t_back))
    median = [float(np.median(values)) if values else float("nan") for values in (rotations, directions)]
    return {"swap_rotation_deg": median[0], "swap_direction_deg": median[1], "swap_pairs": len(rotations)}


def _by_pair(parsed, targets) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """cam1_T_cam2 as answered, of the pairs of which both parts were read."""
    found: dict[str, dict] = {}
    for answer, target in zip(parsed, targets, strict=True):
        if answer is not None:
            found.setdefault(target["pair"], {})[target["kind"]] = answer
    wanted = ("euler_natural", "translation_direction")
    whole = {pair: [kinds[kind] for kind in wanted] for pair, kinds in found.items() if kinds.keys() >= set(wanted)}
    return {pair: (pose.matrix_from_euler(*euler), pose.unit_vector(t)) for pair, (euler, t) in whole.items()}
