"""Small records, shards and mixtures of them; a depth mixture with the sizes and weights of the paper's."""

import io
import itertools
import json
import pathlib

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from vlm3_jax import config as configs
from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.data import mixture, schedule
from vlm3_jax.data.loader import Loader
from vlm3_jax.data.packing import fits
from vlm3_jax.processor.image import VisionSpec

# What Qwen3-VL expects of images.
QWEN_VISION = VisionSpec(16, 2, 2, 65_536, 16_777_216, (0.5,) * 3, (0.5,) * 3, 48)


def small_record(number: int, size=(128, 96), covisibility=None) -> records.Record:
    """A 128 x 96 image of random blocks with 40 labelled points."""
    rng = np.random.default_rng(number)
    width, height = size
    pixels = np.kron(rng.integers(0, 255, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    camera = Camera(100.0, 100.0, width / 2, height / 2, width, height)
    view = records.View(records.encode_image(pixels, f"image {number}"), camera)
    points = records.DepthPoints(rng.integers(0, size, (40, 2)), rng.uniform(1, 9, 40), "z")
    return records.Record(f"r{number}", (view,), depth=(points,), covisibility=covisibility)


def write_shard(path, items) -> None:
    """Records, or bytes to be written as they are."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for item in items:
        writer.write(item if isinstance(item, bytes) else records.to_bytes(item))
    writer.close()


def load(opened, settings, batches, state=None, **kwargs) -> list:
    """The first so many batches of a loader over an `Opened` mixture."""
    with loader_of(opened, settings, state, **kwargs) as loader:
        return list(itertools.islice(loader, batches))


def loader_of(opened, settings, state=None, **kwargs) -> Loader:
    """The loader of an `Opened` mixture."""
    scheduler = scheduler_of(opened, settings)
    return Loader(opened.mixture, scheduler, state or opened.state, settings.budget, settings.vision, **kwargs)


def scheduler_of(opened, settings) -> schedule.Scheduler:
    """The scheduler of an `Opened` mixture."""
    return schedule.Scheduler(opened.mixture.sample, lambda row: fits(row, settings.budget), opened.streams)


def same(one, two) -> None:
    """Asserts that two batches are equal, and what follows them too."""
    assert one.ids == two.ids
    np.testing.assert_array_equal(one.state.cursors, two.state.cursors)
    assert one.arrays.keys() == two.arrays.keys()
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, two.arrays[name], err_msg=name)


def by_stream(batches) -> list[list[str]]:
    """The sample ids of every stream, in order."""
    return [[id for batch in batches for id in batch.ids[row]] for row in range(len(batches[0].ids))]


def same_without(damaged, whole, lost) -> None:
    """Asserts that every stream has the ids of the undisturbed one in their order, but for those that `lost` holds."""
    for found, expected in zip(by_stream(damaged), by_stream(whole), strict=True):
        kept = [id for id in expected if not lost(id)]
        both = min(len(found), len(kept))
        assert both > 5
        assert found[:both] == kept[:both]


class Troubled:
    """A source that calls `trouble(index)` before every reading."""

    def __init__(self, source, trouble):
        self._source, self._trouble = source, trouble

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        self._trouble(index)
        return self._source[index]


class Opened:
    """A mixture with the state that its run starts from."""

    def __init__(self, table, settings, streams, seed=0, saved=None, max_bad_fraction=0.01):
        self.components = mixture.build_components(table, settings, max_bad_fraction)
        self.lengths = {c.name: len(c) for c in self.components}
        self.weights = {c.name: c.fields.weight for c in self.components}
        self.streams = streams
        self.state = schedule.open_schedule(self.lengths, self.weights, streams, saved, seed)
        self.mixture = mixture.Mixture(self.components, seed, self.state.phases)


def blank_depthlm(path: pathlib.Path, sizes, focal: float, lines: int, points: int = 12) -> None:
    """A DepthLM jsonl of grey images of these (width, height), taken in turn, and the images beside it."""
    rng = np.random.default_rng(len(path.stem))
    rows = []
    for width, height in sizes:
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), (128, 128, 128)).save(buffer, "PNG")
        (path.parent / f"{width}x{height}.png").write_bytes(buffer.getvalue())
    for line in range(lines):
        width, height = sizes[line % len(sizes)]
        rows.append(
            {
                "image": f"{width}x{height}.png",
                "intrinsics": [focal, focal, width / 2, height / 2, width, height],
                "pixel_coords": rng.integers(0, (width, height), (points, 2)).tolist(),
                "depth": rng.uniform(1, 90, points).round(2).tolist(),
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")


def depth_mixture(folder: pathlib.Path, lines: int = 64) -> dict:
    """A table of grey images in the sizes and shares of the paper's depth mixture, those of the shipped recipe."""
    table = {}
    for name, entry in configs.load("depth").data.components.items():
        path, (width, height, focal) = folder / f"{name}.jsonl", entry.size
        blank_depthlm(path, [(int(width), int(height))], focal, lines)
        same = {field: entry[field] for field in ("weight", "resize", "protocol", "questions")}
        table[name] = {"kind": "depthlm", "path": str(path), "depth_kind": "z", **same}
    return table
