"""What several test folders share: small records, samples and batches of them, a run's config, a full disk."""

import contextlib
import json
import pathlib
import resource

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from vlm3_jax import config as configs
from vlm3_jax import records
from vlm3_jax.camera import Camera
from vlm3_jax.config import component_config
from vlm3_jax.data.component import SampleSettings
from vlm3_jax.data.mixture import Mixture, build_components, first_phase
from vlm3_jax.data.packing import RowBudget, pack
from vlm3_jax.processor.chat import ChatFormat
from vlm3_jax.processor.image import VisionSpec

FOCAL = 40.0
SIZES = ((32, 24), (40, 32), (24, 48), (64, 16))
"""(width, height) of the images, all multiples of the 8 px of a visual token of the model "test"."""


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Larger ones cannot be written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def blocks(rng, size) -> np.ndarray:
    """uint8 [H, W, 3]: random blocks of 4 x 4 pixels, which survive resizing."""
    width, height = size
    return np.kron(rng.integers(0, 255, (height // 4, width // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def pair_record(number: int, sizes) -> records.Record:
    """Two views of random blocks with 12 depths each and 10 matches; everything follows from `number`."""
    rng = np.random.default_rng(number)
    views, depth = [], []
    for k, (width, height) in enumerate(sizes):
        camera = Camera(FOCAL, FOCAL, width / 2, height / 2, width, height)
        image = records.encode_image(blocks(rng, (width, height)), f"image {number}.{k}")
        views.append(records.View(image, camera, np.eye(4)))
        depth.append(records.DepthPoints(rng.integers(0, (width, height), (12, 2)), rng.uniform(1, 9, 12), "z", k))
    first, second = (np.array(size) for size in sizes)
    matches = records.Matches(rng.integers(0, first, (10, 2)), rng.uniform(0, second - 1, (10, 2)))
    return records.Record(f"r{number}", tuple(views), tuple(depth), matches=matches, covisibility=0.5)


def write_records(folder: pathlib.Path, count: int = 24) -> pathlib.Path:
    """A folder with a shard of pairs of all sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(folder / "pairs.array_record"), "group_size:1")
    for i in range(count):
        writer.write(records.to_bytes(pair_record(i, (SIZES[i % 4], SIZES[(i + 1) % 4]))))
    writer.close()
    return folder


def write_depthlm(folder: pathlib.Path, count: int = 20) -> pathlib.Path:
    """A DepthLM jsonl with images beside it (0.png, 1.png, ...); the path of the jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        record = pair_record(i, (SIZES[0], SIZES[0]))
        (folder / f"{i}.png").write_bytes(record.views[0].image.data)
        points = record.depth[0]
        camera = record.views[0].camera
        lines.append(
            {
                "image": f"{i}.png",
                "intrinsics": [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height],
                "pixel_coords": points.points_px.tolist(),
                "depth": points.depth_m.tolist(),
            }
        )
    path = folder / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def small_run(model, data, workdir=""):
    """A config of 20 steps on two tasks: two rows a batch, float32, the rate high enough to change the loss."""
    config = configs.base()
    config.model, config.workdir = str(model), str(workdir)
    entry = {"path": str(data), "protocol": "short", "resize": f"focal:{FOCAL:g}", "questions": 3}
    config.data.components.depth = component_config(task="depth", weight=2.0, **entry)
    config.data.components.match = component_config(task="correspondence", **entry)
    config.eval.components.depth = component_config(task="depth", limit=8, **entry)
    config.data.rows, config.data.row_tokens, config.data.row_patches, config.data.row_targets = 2, 256, 256, 64
    config.data.mode = "independent"
    config.optimizer.learning_rate, config.optimizer.clip = 3e-3, 1.0
    config.train.samples, config.train.max_steps = 1000, 20
    config.train.dtype, config.train.remat, config.train.export = "float32", "none", "float32"
    config.train.log_every, config.train.save_every, config.train.eval_every = 5, 6, 12
    return config


def run_on(root, name, model):
    """The small run on `root`/records; with the name "depthlm" its components read the jsonl and its images there."""
    config = small_run(model, pathlib.Path(root) / name)
    if name == "depthlm":
        # The same shapes and number of components as the other runs in the tests: their program is compiled once.
        for entry in (*config.data.components.values(), *config.eval.components.values()):
            entry.kind, entry.path, entry.task = "depthlm", f"{root}/depthlm/train.jsonl", "depth"
            entry.depth_kind = "z"
    return config


def draw_samples(model_dir, data, mode: str, count: int):
    """(samples of two tasks in which the first token of every answer weighs 3, the model's VisionSpec)."""
    entry = {"path": str(data), "protocol": "short", "resize": f"focal:{FOCAL:g}", "questions": 3}
    table = {
        "depth": component_config(task="depth", **entry),
        "match": component_config(task="correspondence", **entry),
    }
    spec = VisionSpec.from_dir(model_dir)
    settings = SampleSettings(ChatFormat.from_dir(model_dir), spec, RowBudget(256, 256, 64), mode, 3.0)
    components = build_components(table, settings, 0.01)
    phase = first_phase({c.name: len(c) for c in components}, {c.name: 1.0 for c in components})
    mixture = Mixture(components, 0, [phase])
    return [mixture.sample(i) for i in range(count)], spec


def pack_rows(rows, spec, budget) -> dict[str, np.ndarray]:
    """A batch of rows of samples, pixels loaded."""
    return pack(rows, [[[layout.load(spec) for layout in s.images] for s in row] for row in rows], budget, spec)


def rows_of_metrics(workdir) -> list[dict]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
