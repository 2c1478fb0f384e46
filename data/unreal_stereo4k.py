"""UnrealStereo4K: nine rendered scenes seen by a stereo camera."""

import numpy as np

from vlm3_jax.builders import posed
from vlm3_jax.builders.common import image, subfolders
from vlm3_jax.builders.readers.numbers import read_rows
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.records.map_files import read_npy

OPEN_M = 10_000.0
"""Depth from here on is the open sky."""
RIGHT_HANDED = np.diag([1.0, -1.0, 1.0, 1.0])


class UnrealStereo4K(posed.PairBuilder):
    """Extrinsics<c>/*.txt: a line with K (9 numbers) and one with world-to-camera (12), of both cameras c.

    Disparity is in pixels, z = fx baseline / disparity, the baseline the distance of the two cameras: metres. Camera
    axes are OpenCV's, but the world is left-handed (right, up, forward): a rotation of determinant -1 is mirrored in y,
    one of determinant 1 is left as it is. No hold-out was published: scene 00008.
    """

    name, title = "unreal_stereo4k", "UnrealStereo4K"
    splits, held_out = ("train", "val"), "val"
    layout = "<00000..00008>/{Image0, Image1, Disp0, Disp1, Extrinsics0, Extrinsics1}/%05d.{png, npy, txt}"
    labels = "z-depth in metres, poses; pairs of both cameras within 8 moments"
    licence = "MIT; github.com/fabiotosi92/SMD-Nets"
    doubts = (
        posed.HALF_A_PIXEL,
        "metres in scene 00000: its author says that its baseline is neither 0.2 nor 0.5 (SMD-Nets issue 15)",
    )
    test = "tests/builders/test_unreal_stereo4k.py"

    def scenes(self, raw, split):
        """Folders of five digits; both cameras by turns."""
        names = [f.name for f in subfolders(raw, "folders 00000 to 00008") if f.name.isdigit()]
        if not names:
            raise UserError(f"{raw}: expected folders 00000 to 00008 in it")
        for name in names:
            if (name == "00008") == (split == "val"):
                files = [(path.name[:-4], c) for c in (0, 1) for path in (raw / name / f"Image{c}").glob("*.png")]
                yield name, [{"key": f"{file}_{c}", "file": file, "camera": c} for file, c in sorted(files)]

    def frame(self, raw, scene, data):
        """Image, disparity, and the poses of both cameras."""
        folder, file, c, name = raw / scene, data["file"], data["camera"], f"{scene}/{data['key']}"
        lines = [posed.contents(folder / f"Extrinsics{n}" / f"{file}.txt") for n in (0, 1)]
        (K, pose), (_, other) = (read_extrinsics(lines[n], name) for n in (c, 1 - c))
        photo = image(folder / f"Image{c}" / f"{file}.png", f"{name}.png")
        disparity = read_npy(posed.contents(folder / f"Disp{c}" / f"{file}.npy"), f"{name}.npy").astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = K[0, 0] * np.linalg.norm(pose[:3, 3] - other[:3, 3]) / disparity
        depth = np.where(depth < OPEN_M, depth, np.nan)
        camera = posed.camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], photo, first=0.5)
        return posed.PosedFrame(photo, camera, right_handed(pose), depth)


def read_extrinsics(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """K [3, 3] and camera-to-world [4, 4] as stored, perhaps mirrored."""
    lines = [read_rows(line, f"{name}.txt") for line in data.strip().splitlines()]
    if len(lines) != 2 or lines[0].size != 9 or lines[1].size != 12:
        raise BadRecord(f"{name}.txt: expected a line of 9 numbers and one of 12")
    return lines[0].reshape(3, 3), posed.inverse(lines[1].reshape(3, 4), name)


def right_handed(world_T_cam: np.ndarray) -> np.ndarray:
    """A pose whose world is left-handed, mirrored in its second axis; others as they are."""
    return RIGHT_HANDED @ world_T_cam if np.linalg.det(world_T_cam[:3, :3]) < 0 else world_T_cam
