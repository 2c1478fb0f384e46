"""A record with every kind of label, made of plain numbers; shared by the tests of the tasks."""

import numpy as np
from scipy.spatial.transform import Rotation

from vlm3_jax.camera import Camera
from vlm3_jax.records import Conversation, DepthPoints, ImageRef, Matches, Objects, Record, Turn, View


def view(camera: Camera, pose=None) -> View:
    return View(ImageRef(camera.width, camera.height, "test image", data=b""), camera, pose)


def random_record(rng: np.random.Generator, metric: bool = True) -> Record:
    """Two 1400 x 1000 views with 60 labelled points, 5 boxes and 40 matches."""
    camera = Camera(1000, 1010, 700, 500, 1400, 1000)
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[:, :3, :3] = Rotation.random(2, rng=rng).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(2, 3))
    size = [camera.width, camera.height]
    pixels = rng.integers(0, size, (60, 2))
    corners = rng.integers(0, size, (5, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], -1)
    clouds = tuple(
        (rng.normal(size=(30, 3)) * rng.uniform(0.02, 1, 3) + rng.uniform([-4, -1, 3], [4, 1, 12])).astype(np.float32)
        for _ in range(5)
    )
    return Record(
        "scene 1",
        (view(camera, poses[0]), view(camera, poses[1])),
        depth=(DepthPoints(pixels, rng.uniform(0.05, 30, 60).astype(np.float32), "distance", int(rng.integers(2))),),
        objects=(Objects(boxes, ("thing",) * 5, clouds, 1),),
        matches=Matches(pixels[:40], (pixels[20:] * 0.99).astype(np.float32)),
        metric=metric,
        conversation=Conversation(
            (
                Turn("system", "Be brief."),
                Turn("user", "<image>\nWhat is <mask>?", (0,), (0,)),
                Turn("assistant", f"Region [0] is a {rng.choice(['chair', 'table', 'lamp'])}."),
                Turn("user", "And in <image>?", (1,)),
                Turn("assistant", "Nothing."),
            ),
            boxes[:1],
        ),
    )
