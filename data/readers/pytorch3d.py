"""Cameras as PyTorch3D's annotations hold them (CO3D, DynamicReplica): axes x left, y up, z forward."""

import typing

import numpy as np

from vlm3_jax.errors import BadRecord

OPENCV = np.diag([-1.0, -1.0, 1.0])
"""opencv_R_pytorch3d of a camera; its own inverse."""


class Viewpoint(typing.NamedTuple):
    """fx, fy, cx, cy in pixels, the corner of the image at (0, 0), and camera-to-world [4, 4] (OpenCV)."""

    K: tuple[float, float, float, float]
    world_T_cam: np.ndarray


def read_viewpoint(tree, width: int, height: int, name: str) -> Viewpoint:
    """A `viewpoint` {R, T, focal_length, principal_point, intrinsics_format} of an image of this size.

    Rows are points there: x_cam = x_world R + T. Of "ndc_isotropic" half the shorter side is 1, and the principal
    point counts from the middle of the image to the left and up; "ndc_norm_image_bounds" takes half of each side.
    """
    try:
        R, T = np.array(tree["R"], np.float64).reshape(3, 3), np.array(tree["T"], np.float64).reshape(3)
        focal, centre = (np.array(tree[key], np.float64).reshape(2) for key in ("focal_length", "principal_point"))
        form = tree["intrinsics_format"].lower()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRecord(f"{name}: no viewpoint of PyTorch3D ({error})") from None
    half = np.array([width, height]) / 2
    unit = {"ndc_isotropic": np.full(2, half.min()), "ndc_norm_image_bounds": half}.get(form)
    if unit is None:
        raise BadRecord(f"{name}: intrinsics_format {form!r} is neither ndc_isotropic nor ndc_norm_image_bounds")
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R @ OPENCV, -R @ T
    return Viewpoint((*(focal * unit).tolist(), *(half - centre * unit).tolist()), pose)
