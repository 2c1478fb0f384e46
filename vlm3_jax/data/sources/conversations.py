"""Files of conversations: a JSON list or a jsonl of rows (`chat_rows`), and a folder of images."""

import logging
import os
import weakref

import numpy as np

from vlm3_jax.data.sources.items import ASSUMED_FOV_DEG, ItemSource, inside, part_of, photo_view
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.chat_rows import Row, parse_row
from vlm3_jax.formats.json_items import item_spans, parsed
from vlm3_jax.processor import intrinsics
from vlm3_jax.records import Record, View
from vlm3_jax.storage import AnyPath, patiently
from vlm3_jax.storage.folders import fetched_file

_log = logging.getLogger(__name__)


class ConversationSource(ItemSource):
    """Random access to the rows of a file of conversations; only byte offsets are kept in memory.

    A file in a bucket is fetched, its images are read where they lie. `images`: the folder that they are in, None for
    that of the file. `camera`: of images without one (`intrinsics.rule`); else EXIF, a file beside the image, and at
    last an assumed field of view, which is said once. `part`, `share`: `part_of`, by the first image of a row, so that
    no image is in both parts.
    """

    def __init__(
        self,
        name: str,
        path: AnyPath,
        images: AnyPath | None = None,
        camera: str = "",
        part: str = "",
        share: float = 0.1,
        first: int = 0,
        limit: int | None = None,
    ):
        if not path.is_file():
            raise UserError(f"{name}: no such file {path}")
        self._root = (images or path.parent).resolve()
        self._rule = intrinsics.rule(camera) if camera else None
        self._assumed = False
        self._file = os.open(fetched_file(path), os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._file)
        spans = item_spans(path)
        self.path = path
        items = np.column_stack([np.arange(len(spans)), spans])
        try:
            self._row(items[0])
        except BadRecord as error:
            raise UserError(f"{path}: {error}; docs/own_data.md shows the rows that are read") from None
        if part:
            items = items[part_of([self._scene(item) for item in items], part, share, name)]
        super().__init__(name, path, items, first, limit)

    def _row(self, item) -> Row:
        number, offset, length = (int(n) for n in item)
        # pread has no file position, so threads can share the descriptor.
        data = patiently(lambda: os.pread(self._file, length, offset), f"{self.path}: item {number}")
        try:
            return parse_row(parsed(data), number)
        except BadRecord as error:
            raise BadRecord(f"item {number}: {error}") from None

    def _scene(self, item) -> str:
        """What decides which part a row is in: its first image; for a broken row or one in words alone its number."""
        try:
            row = self._row(item)
            return row.images[0] if row.images else row.id
        except BadRecord:
            return str(item[0])

    def _record(self, item) -> Record:
        row = self._row(item)
        views = tuple(self._view(file, f"item {int(item[0])}") for file in row.images)
        scene = row.images[0] if row.images else ""
        return Record(row.id, views, conversation=row.conversation, scene=scene)

    def _view(self, file: str, name: str) -> View:
        path = inside(self._root, file, f"{self.path}: {name}")
        view, assumed = photo_view(path, file, f"{name}: {file}", self._rule)
        if assumed:
            self._say_assumed(file)
        return view

    def _say_assumed(self, file: str) -> None:
        if not self._assumed:
            self._assumed = True
            _log.warning(
                "data: %s: nothing tells the camera of %s (and perhaps of others): a field of view of %g degrees is "
                "assumed; set camera, or write cameras by vlm3 data calibrate",
                self.name,
                file,
                ASSUMED_FOV_DEG,
            )
