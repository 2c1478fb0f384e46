"""RealEstate10K's text files: cameras and poses of frames of walks, no depth, no metric scale."""

import pathlib
from collections.abc import Sequence

from vlm3_jax.data.sources.items import IMAGE_SUFFIXES, ItemSource, pairs_apart, part_of, photo
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.realestate10k import camera_of, read_clip
from vlm3_jax.records import Record, View
from vlm3_jax.storage import AnyPath


class RealEstate10KSource(ItemSource):
    """Pairs of frames that lie `gaps` apart in a clip, of those frames whose images are there.

    `path`: a folder of CLIP.txt; `images`: the folder of CLIP/MICROSECONDS.png, None for the same.
    """

    def __init__(
        self,
        name: str,
        path: AnyPath,
        gaps: Sequence[int],
        images: AnyPath | None = None,
        part: str = "",
        share: float = 0.1,
        first: int = 0,
        limit: int | None = None,
    ):
        clips = sorted(p.stem for p in path.glob("*.txt")) if path.is_dir() else []
        if not clips:
            raise UserError(f"{name}: no CLIP.txt in {path}")
        self._folder, self._images = path.resolve(), (images or path).resolve()
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
            image, ref = photo(path, name)
            views.append(View(ref, *camera_of(row, *image.size, name)))
        times = "+".join(pathlib.PurePath(file).stem for file in files)
        return Record(f"{clip}/{times}", tuple(views), metric=False, scene=clip)
