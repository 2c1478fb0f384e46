"""RealEstate10K's text files: cameras and poses of frames of walks, no depth, no metric scale."""

import pathlib
from collections.abc import Sequence

import numpy as np

from vlm3_jax.camera import Camera
from vlm3_jax.data.sources import numbers
from vlm3_jax.data.sources.items import IMAGE_SUFFIXES, ItemSource, header, image_ref, pairs_apart, part_of
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.pose import check_pose
from vlm3_jax.records import Record, View

FIELDS = 19


class RealEstate10KSource(ItemSource):
    """Pairs of frames that lie `gaps` apart in a clip, of those frames whose images are there.

    `path`: a folder of CLIP.txt; `images`: the folder of CLIP/MICROSECONDS.png, "" for the same. Intrinsics are parts
    of the image's sides: a principal point of 0.5 is its middle, (W - 1) / 2 from the centre of the first pixel.
    """

    def __init__(
        self,
        name: str,
        path: pathlib.Path,
        gaps: Sequence[int],
        images: str = "",
        part: str = "",
        share: float = 0.1,
        first: int = 0,
        limit: int | None = None,
    ):
        clips = sorted(p.stem for p in path.glob("*.txt")) if path.is_dir() else []
        if not clips:
            raise UserError(f"{name}: no CLIP.txt in {path}")
        self._folder, self._images = path.resolve(), pathlib.Path(images or path).resolve()
        items = []
        for clip in (clips[i] for i in part_of(clips, part, share, name)):
            frames = self._frames(clip)
            items += [(clip, frames[i], frames[j]) for i, j in pairs_apart(len(frames), gaps)]
        if not items:
            raise UserError(f"{name}: no frames (CLIP/MICROSECONDS.png) of the clips in {path} are in {self._images}")
        super().__init__(name, path, items, first, limit)

    def _frames(self, clip: str) -> list[str]:
        """The names of a clip's images, by time."""
        folder = self._images / clip
        found = [p for p in folder.iterdir() if p.suffix in IMAGE_SUFFIXES] if folder.is_dir() else []
        return [p.name for p in sorted((p for p in found if p.stem.isdigit()), key=lambda p: int(p.stem))]

    def _record(self, item) -> Record:
        clip, *files = item
        rows = read_clip(self._folder / f"{clip}.txt")
        views = []
        for file in files:
            path, name = self._images / clip / file, f"{clip}/{file}"
            row = rows.get(int(path.stem))
            if row is None:
                raise BadRecord(f"{name}: {clip}.txt has no row for it")
            size = header(path, name).size
            views.append(View(image_ref(path, size, name), *camera_of(row, *size, name)))
        times = "+".join(pathlib.PurePath(file).stem for file in files)
        return Record(f"{clip}/{times}", tuple(views), metric=False, scene=clip)


def read_clip(path: pathlib.Path) -> dict[int, np.ndarray]:
    """Time stamp (microseconds) -> the other 18 numbers of its row. BadRecord if the file is not laid out so."""
    lines = numbers.text(path, path.name).splitlines()[1:]
    try:
        found = {int(words[0]): np.array(words[1:], np.float64) for line in lines if (words := line.split())}
    except ValueError as error:
        raise BadRecord(f"{path.name}: expected rows of numbers after the first line ({error})") from None
    if any(len(row) != FIELDS - 1 for row in found.values()):
        raise BadRecord(f"{path.name}: expected rows of {FIELDS} numbers after the first line")
    return found


def camera_of(row: np.ndarray, width: int, height: int, name: str) -> tuple[Camera, np.ndarray]:
    """The camera of an image of this size, and its camera-to-world pose."""
    fx, fy, cx, cy = (row[:4] * [width, height, width, height]).tolist()
    camera = Camera(fx, fy, cx - 0.5, cy - 0.5, width, height).plausible(f"{name}: camera")
    cam_T_world = np.vstack([row[6:].reshape(3, 4), [0, 0, 0, 1]])
    return camera, np.linalg.inv(check_pose(cam_T_world, f"{name}: pose"))
