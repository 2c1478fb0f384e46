"""Small questions of all tasks and answerers that need no model."""

import numpy as np

from vlm3_jax import pose
from vlm3_jax.camera import Camera
from vlm3_jax.evaluate.items import Questions
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.records import Conversation, DepthPoints, Matches, Objects, Record, Turn, View, encode_image
from vlm3_jax.tasks import TASKS
from vlm3_jax.tasks.protocol import given

SPEC = VisionSpec(16, 2, 2, 1024, 65536, (0.5,) * 3, (0.5,) * 3, 4)


def make_record(rng, name: str, width: int = 96, height: int = 64) -> Record:
    """Two views of smooth colours with labels for every task, unrelated to the pixels."""

    def view(number, yaw):
        ramp = np.linspace(0, 1, width)[None, :, None] * rng.uniform(50, 255, 3) + rng.uniform(0, 40, 3)
        pixels = np.broadcast_to(np.clip(ramp, 0, 255), (height, width, 3)).astype(np.uint8)
        world_T_cam = np.eye(4)
        world_T_cam[:3, :3] = pose.matrix_from_euler(yaw, 0, 0)
        world_T_cam[:3, 3] = rng.normal(size=3)
        camera = Camera(100, 100, width / 2, height / 2, width, height)
        return View(encode_image(np.ascontiguousarray(pixels), f"{name}-{number}.png"), camera, world_T_cam)

    points = rng.integers(0, [width, height], (12, 2))
    low = rng.integers(0, [width // 2, height // 2], (4, 2))
    return Record(
        id=name,
        views=(view(0, 0.0), view(1, rng.uniform(-30, 30))),
        depth=(DepthPoints(points, rng.uniform(1, 10, 12), "distance"),),
        objects=(
            Objects(
                np.concatenate([low, low + np.array([20, 16])], 1),
                ("box",) * 4,
                tuple(rng.normal(size=3) * 2 + [0, 0, 6] + rng.uniform(-1, 1, (20, 3)) for _ in range(4)),
            ),
        ),
        matches=Matches(points, rng.uniform(0, [width, height], (12, 2))),
        conversation=Conversation((Turn("user", f"What is {name}?", (0,)), Turn("assistant", f"It is {name}."))),
    )


def make_questions(
    task_name: str, records: int = 6, wording: str = "release", component: str | None = None
) -> list[Questions]:
    """The questions of one task about `records` records of different sizes."""
    rng = np.random.default_rng(3)
    found = []
    for k in range(records):
        record = make_record(rng, f"scene/{k}", 96 + 32 * (k % 2), 64)
        task = TASKS[task_name]
        examples = task.alone(task.examples(record, np.random.default_rng(k), given(task_name, wording, questions=8)))
        layouts = tuple(image_layout(record.views[v], SPEC) for v in examples[0].views)
        found.append(Questions(component or f"toy-{task_name}", record.id, task_name, layouts, tuple(examples)))
    return found


class Truthful:
    """Answers every question with its own answer, whatever the images, and keeps what it was asked."""

    def __init__(self, asked):
        self.answers = {
            (id(questions.images[0].ref), example.question): example.answer
            for questions in asked
            for example in questions.examples
        }
        self.asked = []

    def answer(self, images, questions):
        self.asked += list(zip(images, questions, strict=True))
        return [
            [self.answers.get((id(layouts[0].ref), question), "no idea") for question in texts]
            for layouts, texts in zip(images, questions, strict=True)
        ]


class Constant:
    """Answers every question alike."""

    def __init__(self, text: str):
        self.text = text

    def answer(self, images, questions):
        return [[self.text] * len(asked) for asked in questions]


def mixed_questions() -> list[Questions]:
    """Questions of every task, their records mixed in one list."""
    found = [questions for name in TASKS for questions in make_questions(name)]
    return [found[i] for i in np.random.default_rng(1).permutation(len(found))]


def count(asked) -> int:
    """The number of questions."""
    return sum(len(questions.examples) for questions in asked)
