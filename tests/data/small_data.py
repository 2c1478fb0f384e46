"""Small records, shards and mixtures of them."""

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from vlm3_jax.camera import Camera
from vlm3_jax.data import mixture, plan, records


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


class Opened:
    """A mixture with the state that its run starts from."""

    def __init__(self, table, settings, streams, seed=0, saved=None, max_bad_fraction=0.01):
        self.components = mixture.build_components(table, settings, max_bad_fraction)
        self.lengths = {c.name: len(c) for c in self.components}
        self.weights = {c.name: c.entry.weight for c in self.components}
        self.streams = streams
        self.state = plan.open_state(self.lengths, self.weights, streams, saved)
        self.mixture = mixture.Mixture(self.components, seed, self.state.phases)
