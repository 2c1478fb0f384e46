"""A relative pose as a COLMAP text model: cameras.txt, images.txt and an empty points3D.txt.

The first camera is the world. COLMAP's images.txt holds cam_T_world and counts pixels from the corner of the first, so
principal points gain half a pixel (colmap.github.io/format.html).
"""

import pathlib

import numpy as np

from vlm3_jax.answers.values import RelativePose
from vlm3_jax.errors import UserError
from vlm3_jax.pose import inverse, quaternion_from_matrix


def files(pose: RelativePose, photos) -> dict[str, bytes]:
    """The files of the model by name. UserError if rotation or direction could not be read: then there is no pose."""
    second = pose.cam1_T_cam2()
    if not np.isfinite(second).all():
        raise UserError("colmap: the model's answers give no pose (rotation or direction cannot be read)")
    unit = "metres" if pose.metric else "the length of the motion, which the model did not tell"
    cameras, images = [f"# One unit is {unit}."], [f"# One unit is {unit}; the first camera is the world."]
    names = _names(photos)
    for number, (camera, source, world_T_cam) in enumerate(
        zip(pose.cameras, pose.camera_sources, (np.eye(4), second), strict=True), 1
    ):
        size = f"{camera.width} {camera.height}"
        lens = _numbers([camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5])
        cameras += [f"# camera {number}: {source}", f"{number} PINHOLE {size} {lens}"]
        cam_T_world = inverse(world_T_cam)
        place = _numbers([*quaternion_from_matrix(cam_T_world[:3, :3]), *cam_T_world[:3, 3]])
        # The second line lists the points that the image sees: none.
        images += [f"{number} {place} {number} {names[number - 1]}", ""]
    texts = {"cameras.txt": cameras, "images.txt": images, "points3D.txt": ["# No points."]}
    return {name: "\n".join([*lines, ""]).encode() for name, lines in texts.items()}


def _names(photos) -> list[str]:
    """File names, which must differ in a model; COLMAP ends a name at a space, which becomes "_"."""
    names = ["_".join(pathlib.PurePosixPath(photo.name).name.split()) for photo in photos]
    return names if len(set(names)) == len(names) else [f"{k}/{name}" for k, name in enumerate(names, 1)]


def _numbers(values) -> str:
    return " ".join(f"{value:.12g}" for value in values)
