"""MVSNet's text files, also of BlendedMVS and DTU: NNNNNNNN_cam.txt and pair.txt."""

import typing

import numpy as np

from vlm3_jax.errors import BadRecord


class MvsCamera(typing.NamedTuple):
    """World-to-camera [4, 4], K [3, 3], and the numbers of the last line (depth_min, interval, [count, depth_max])."""

    cam_T_world: np.ndarray
    K: np.ndarray
    depth_range: tuple[float, ...]


def read_cam(data: bytes, name: str) -> MvsCamera:
    """A cam.txt: "extrinsic" and 4 rows, "intrinsic" and 3 rows, then the depth range."""
    words = data.decode("utf-8", "replace").split()
    try:
        if words[0] != "extrinsic" or words[17] != "intrinsic":
            raise ValueError
        extrinsic, K = (np.array(words[a:b], np.float64) for a, b in ((1, 17), (18, 27)))
        return MvsCamera(extrinsic.reshape(4, 4), K.reshape(3, 3), tuple(float(word) for word in words[27:]))
    except (ValueError, IndexError):
        raise BadRecord(f"{name}: no camera file of MVSNet (extrinsic, 16 numbers, intrinsic, 9 numbers)") from None


def read_pairs(data: bytes, name: str) -> dict[int, list[int]]:
    """A pair.txt: view -> its neighbours, best first. Lines: count; then, by turns, a view and "N id score ..."."""
    words = data.decode("utf-8", "replace").split()
    try:
        at, found = 1, {}
        for _ in range(int(words[0])):
            view, count = int(words[at]), int(words[at + 1])
            found[view] = [int(word) for word in words[at + 2 : at + 2 + 2 * count : 2]]
            at += 2 + 2 * count
        if at > len(words):
            raise ValueError
        return found
    except (ValueError, IndexError):
        raise BadRecord(f"{name}: no pair.txt of MVSNet") from None
