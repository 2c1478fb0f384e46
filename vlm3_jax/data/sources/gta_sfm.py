"""GTA-SfM's HDF5 files, in place: images, intrinsics, poses and z-depth of walks through a game."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.data.sources.items import ItemSource, pairs_apart, part_of
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.pose import check_pose
from vlm3_jax.records import FORMATS, MAX_IMAGE_BYTES, DepthMap, ImageRef, Record, View

PARTS = ("image", "K", "pose", "depth")


class GTASfMSource(ItemSource):
    """Frames of `*.hdf5` files (one a scene): image_<i> (encoded), K_<i>, pose_<i> (camera-to-world), depth_<i> (z).

    Single frames, or with `gaps` pairs of frames so many apart. Half a pixel is taken off the principal point, as one
    of its loaders does. Needs h5py (the extra `builders`).
    """

    def __init__(
        self,
        name: str,
        path: pathlib.Path,
        gaps: Sequence[int] = (),
        part: str = "",
        share: float = 0.1,
        first: int = 0,
        limit: int | None = None,
    ):
        files = sorted(path.glob("*.hdf5")) if path.is_dir() else [path] if path.is_file() else []
        if not files:
            raise UserError(f"{name}: no *.hdf5 in {path}")
        frames = [(file, number) for file in files for number in _numbers(file)]
        frames = [frames[i] for i in part_of([file.stem for file, _ in frames], part, share, name)]
        items: list[Any] = [(file, number) for file, number in frames]
        if gaps:
            items = []
            for file in files:
                own = [number for one, number in frames if one == file]
                items += [(file, own[i], own[j]) for i, j in pairs_apart(len(own), gaps)]
        super().__init__(name, path, items, first, limit)

    def _record(self, item) -> Record:
        file, *frames = item
        views, maps = [], []
        with _opened(file) as opened:
            for view, number in enumerate(frames):
                name = f"{file.stem}/{number}"
                data, K, pose, depth = (_dataset(opened, f"{part}_{number}", name) for part in PARTS)
                image = _image(data, name)
                if K.shape != (3, 3) or depth.ndim != 2:
                    raise BadRecord(f"{name}: K has shape {list(K.shape)}, depth {list(depth.shape)}")
                fx, fy, cx, cy = (float(v) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
                camera = Camera(fx, fy, cx - 0.5, cy - 0.5, image.width, image.height).plausible(name)
                views.append(View(image, camera, check_pose(pose, f"{name}: pose")))
                maps.append(DepthMap(depth.shape[1], depth.shape[0], 1.0, "z", view, name, values=depth))
        id = f"{file.stem}/{'+'.join(map(str, frames))}"
        return Record(id, tuple(views), scene=file.stem, depth_maps=tuple(maps))


def _opened(file: pathlib.Path):
    try:
        import h5py
    except ImportError:
        raise UserError('reading HDF5 needs h5py: pip install "vlm3-jax[builders]"') from None
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise UserError(f"{file}: not a readable HDF5 file ({error})") from None


def _numbers(file: pathlib.Path) -> list[int]:
    """The frames that have all parts."""
    with _opened(file) as opened:
        keys = set(opened)
    found = sorted(int(key[6:]) for key in keys if key.startswith("image_") and key[6:].isdigit())
    return [number for number in found if all(f"{part}_{number}" in keys for part in PARTS)]


def _dataset(opened, key: str, name: str) -> np.ndarray:
    try:
        if opened[key].size > MAX_IMAGE_BYTES:
            raise BadRecord(f"{name}: {key} has {opened[key].size} values, at most {MAX_IMAGE_BYTES} are read")
        return np.asarray(opened[key])
    except (OSError, ValueError, AttributeError) as error:
        raise BadRecord(f"{name}: {key} cannot be read ({error})") from None


def _image(data: np.ndarray, name: str) -> ImageRef:
    import io

    from PIL import Image

    encoded = np.asarray(data, np.uint8).tobytes()
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            return ImageRef(*image.size, name, data=encoded)
    # Damaged headers make Pillow raise all kinds of errors.
    except Exception as error:
        raise BadRecord(f"{name}: cannot read the image ({error})") from None
