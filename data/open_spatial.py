"""OpenSpatialDataset (SpatialRGPT): conversations about regions of OpenImages photographs."""

import functools
import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.data.sources.items import inside, photo_view
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.chat_rows import parse_row
from vlm3_jax.formats.json_items import item_spans, parsed
from vlm3_jax.records import Record

IMAGES = ("images", "train", ".")


class OpenSpatial(common.Builder):
    """One photograph with its conversation an item: turns with `<mask>` places, regions as boxes.

    A region's box is its `bbox`, else that of its `rle` or `segmentation`. The photographs come without intrinsics:
    the camera is that of EXIF or of the file that `vlm3 data calibrate` writes beside each image, else a field of view
    of 60 degrees. An image that was not downloaded is skipped and counted.
    """

    name = "open_spatial"
    title = "OpenSpatialDataset"
    folder = "objects"
    splits = ("train",)
    layout = (
        "one *.json (a list: filename, bbox | rle | segmentation, conversations) and images/FILENAME.jpg (or train/)"
    )
    labels = "conversations about regions (boxes in pixels), text answers"
    licence = (
        "CC BY-NC 4.0 (annotations, huggingface.co/datasets/a8cheng/OpenSpatialDataset); OpenImages' photographs CC BY"
    )
    doubts = (
        "the published file was not at hand: its fields are those of SpatialRGPT's loader",
        "metric answers in its conversations come from predicted depth and camera",
    )
    test = "tests/builders/test_open_spatial.py"

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """Every element of the list, by its number."""
        path = _list(raw)
        items = []
        for number, (offset, length) in enumerate(_spans(path).tolist()):
            items.append(common.Item(f"{number:08d}", "", {"file": path.name, "span": [offset, length]}))
        return items

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """The image with its conversation."""
        row = parse_row(read_item(raw / item.data["file"], item.data["span"]), int(item.key.split("-")[0]))
        if len(row.images) != 1:
            raise BadRecord(f"{len(row.images)} images, expected one")
        name = row.images[0]
        path = inside(_images(raw).resolve(), name, item.key)
        if not path.exists():
            raise common.Skip(f"there is no image {name}")
        view, _ = photo_view(path, name, name)
        return Record(item.key, (view,), conversation=row.conversation, scene=name)


def read_item(path: pathlib.Path, span):
    """The element of a JSON list, or the line of a jsonl, at (offset, length); BadRecord if it is no JSON."""
    offset, length = span
    with path.open("rb") as file:
        file.seek(offset)
        return parsed(file.read(length))


def _list(raw: pathlib.Path) -> pathlib.Path:
    found = sorted(raw.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(f"{raw}: expected the one JSON file of conversations in it, found {names}")
    return found[0]


@functools.lru_cache(maxsize=1)
def _spans(path: pathlib.Path) -> np.ndarray:
    return item_spans(path)


def _images(raw: pathlib.Path) -> pathlib.Path:
    return next(raw / name for name in IMAGES if (raw / name).is_dir())
