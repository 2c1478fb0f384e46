"""GTA-SfM's HDF5 files, in place: images, intrinsics, poses and z-depth of walks through a game."""

import pathlib
from collections.abc import Sequence
from typing import Any

from vlm3_jax.data.sources.items import ItemSource, pairs_apart, part_of
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.gta_sfm import frame_numbers, read_frame
from vlm3_jax.formats.hdf5 import opened
from vlm3_jax.pose import check_pose
from vlm3_jax.records import DepthMap, Record, View


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
        with opened(file) as data:
            for view, number in enumerate(frames):
                name = f"{file.stem}/{number}"
                frame = read_frame(data, number, name)
                height, width = frame.depth.shape
                views.append(View(frame.image, frame.camera, check_pose(frame.world_T_cam, f"{name}: pose")))
                maps.append(DepthMap(width, height, 1.0, "z", view, name, values=frame.depth))
        id = f"{file.stem}/{'+'.join(map(str, frames))}"
        return Record(id, tuple(views), scene=file.stem, depth_maps=tuple(maps))


def _numbers(file: pathlib.Path) -> list[int]:
    """The frames that have all parts."""
    try:
        return [number for number, whole in frame_numbers(file).items() if whole]
    except BadRecord as error:
        raise UserError(f"{file.parent}: {error}") from None
