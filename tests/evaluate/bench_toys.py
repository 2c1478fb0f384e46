"""Built folders of benchmarks whose records show the tests' world, made without the builders, and who answers."""

import functools
import json
import pathlib

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from tests.builders import truth, world
from vlm3_jax.camera import Camera
from vlm3_jax.evaluate import freeze
from vlm3_jax.evaluate.benchmarks import Asked
from vlm3_jax.evaluate.frozen import FrozenQuestions
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.records import (
    Conversation,
    DepthPoints,
    Record,
    Turn,
    View,
    encode_depth,
    encode_image,
    to_bytes,
)
from vlm3_jax.tasks.protocol import given

SPEC = VisionSpec(16, 2, 2, 1024, 65536, (0.5,) * 3, (0.5,) * 3, 4)
CAMERA = Camera(60, 60, 39.5, 29.5, 80, 60)
POSES = (
    world.pose(0.0, 0.0, 0.0, yaw=2),
    world.pose(0.35, -0.1, 0.2, yaw=-5, pitch=3, roll=4),
    world.pose(-0.3, 0.12, 0.35, yaw=6, pitch=-4, roll=-3),
    world.pose(0.1, 0.05, -0.2, yaw=-9, pitch=2),
)


def seen(pose) -> world.Seen:
    """What the camera sees."""
    return _seen(np.asarray(pose).tobytes())


@functools.cache
def _seen(pose: bytes) -> world.Seen:
    return truth.Frame(60, 60, 39.5, 29.5, 80, 60, np.frombuffer(pose).reshape(4, 4)).seen()


def view(pose, name: str) -> View:
    return View(encode_image(seen(pose).rgb, name), CAMERA, pose)


def depth_record(number: int, sparse: bool = False, kind: str = "z") -> Record:
    """A photo with a dense map, or with sparse points."""
    pose, name = POSES[number], f"place/{number:02d}"
    metres = getattr(seen(pose), kind)
    views = (view(pose, f"{name}.png"),)
    if not sparse:
        return Record(name, views, depth_maps=(encode_depth(metres, kind),), scene="place")
    y, x = np.nonzero(np.isfinite(metres))
    place = np.random.default_rng(number).permutation(len(x))[:300]
    points = np.stack([x, y], -1)[place].astype(np.int32)
    label = DepthPoints(points, metres[y, x][place].astype(np.float32), kind)
    return Record(name, views, depth=(label,), scene="place")


def pair_record(first: int, second: int, name: str = "") -> Record:
    """Two posed photos with their depth."""
    views = tuple(view(POSES[n], f"{n:02d}.png") for n in (first, second))
    maps = tuple(encode_depth(seen(POSES[n]).z, "z", view=v) for v, n in enumerate((first, second)))
    return Record(name or f"place/{first:08d}_0-{second:08d}_1", views, depth_maps=maps, scene="place")


def object_record(number: int, category: str, question: str, answer: str) -> Record:
    """A question about two boxes, or one."""
    kind = "quantitative" if category.endswith("data") or category == "direction" else "qualitative"
    boxes = np.array([[3, 4, 20, 30], [30, 10, 60, 40]][: question.count("<mask>")])
    turns = (Turn("user", question, (0,), tuple(range(len(boxes)))), Turn("assistant", answer))
    name = f"{number:08d}-{kind}-{category}"
    return Record(name, (view(POSES[0], f"{number}.png"),), conversation=Conversation(turns, boxes))


def built(folder: pathlib.Path, records, **about) -> pathlib.Path:
    """A built folder as `vlm3 data build` leaves one, as far as benchmarks look at it."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(folder / "set-test.array_record-00000-of-00001"), "group_size:1")
    for record in records:
        writer.write(to_bytes(record))
    writer.close()
    tree = {"builder": "set", "version": "1.0.0", "split": "test", "depthlm": False, "items": len(records)}
    (folder / "build.json").write_text(json.dumps(tree | {"items_sha256": "0", "images": {}} | about))
    (folder / "rejected.jsonl").write_text("")
    return folder


def frozen(asked: Asked, folder: pathlib.Path, records, **about) -> freeze.Frozen:
    """The manifest of a built folder, both made here."""
    return freeze.freeze(asked, built(folder, records, **about), [record.id for record in records])


def questions(manifest, folder, wording: str = "release", limit=None, labels=None, **fields) -> FrozenQuestions:
    """What a model of that wording would be asked."""
    protocol = given(manifest.asked.benchmark.task, wording, resize="focal:70", **fields)
    return FrozenQuestions(manifest, protocol, SPEC, folder, limit, labels)


class Knows:
    """Answers by the images' names and the question; `turned` changes an answer."""

    def __init__(self, asked, turned=lambda example: example.answer):
        self.answers = {
            (_names(one.images), example.question): turned(example) for one in asked for example in one.examples
        }

    def answer(self, images, questions):
        return [
            [self.answers[_names(layouts), text] for text in texts]
            for layouts, texts in zip(images, questions, strict=True)
        ]


def _names(layouts) -> tuple[str, ...]:
    return tuple(layout.ref.name for layout in layouts)
