"""The questions of benchmarks for models that are not run here: their texts and the pictures that they are about.

`OUT/NAME/questions.jsonl` has a row a question, {"id", "images": paths beside the file, "question"}, in the release's
wording with pictures resized as the release resizes them, or as a model's own protocols say. Answers {"id",
"prediction": text} go to `vlm3 score`.
"""

import json
from collections.abc import Mapping, Sequence

from vlm3_jax import storage
from vlm3_jax.evaluate import harness, manifest
from vlm3_jax.evaluate.benchmarks import Asked
from vlm3_jax.evaluate.frozen import FrozenQuestions
from vlm3_jax.evaluate.items import Questions
from vlm3_jax.evaluate.swap import SWAPPED
from vlm3_jax.files import write_text
from vlm3_jax.model import sizes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.tasks.protocol import RELEASE, Protocol

FILE, PICTURES = "questions.jsonl", "images"
ASKED = ("id", "images", "question")


def hand_out(
    asked: Sequence[Asked],
    out: str | storage.AnyPath,
    limit: int | None = None,
    labels: int | None = None,
    protocols: Mapping[str, Protocol] = {},
    lmms: bool = False,
) -> tuple[dict[str, int], dict[str, str]]:
    """Writes the questions of all benchmarks whose data are there; how many of each, and why others were left out.

    `limit`, `labels`: of each only so many records, evenly spaced, and so many points or matches of each record.
    `protocols`: by task, how to ask instead of as the release does. `lmms`: also as tasks of lmms-eval (harness.py).
    """
    out = storage.local_path(out, "--out")
    counts, missing = {}, {}
    for one in asked:
        try:
            found = manifest.read(one)
        except manifest.NotThere as error:
            missing[one.key] = str(error)
            continue
        # What sizes the vision tower would make of the pictures does not matter to who has another one.
        spec = VisionSpec.of(sizes.released("4b"))
        protocol = protocols.get(one.benchmark.task) or RELEASE[one.benchmark.task]
        questions = FrozenQuestions(found, protocol, spec, limit=limit, labels=labels)
        rows = [
            row
            for number, brief in enumerate(questions.briefs)
            if not brief.component.endswith(SWAPPED)
            for row in _rows(questions[number], out / one.key, number)
        ]
        told = ({name: row[name] for name in ASKED} for row in rows)
        write_text(out / one.key / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told))
        counts[one.key] = len(rows)
        if lmms:
            harness.write_task(out, one.key, found.sha256, rows)
    if lmms and counts:
        harness.write_group(out, list(counts))
    return counts, missing


def _rows(questions: Questions, folder, number: int):
    """The rows about a record, its pictures written."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    names = [f"{PICTURES}/{number:06d}-{view}.png" for view in range(len(questions.images))]
    for name, layout in zip(names, questions.images, strict=True):
        layout.picture().save(folder / name, compress_level=1)
    for id, example in zip(questions.ids, questions.examples, strict=True):
        asked = {"id": id, "images": names, "question": example.question}
        yield {**asked, "task": questions.task, "answer": example.answer, "target": example.target}
