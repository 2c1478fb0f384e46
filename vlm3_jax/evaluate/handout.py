"""The questions of benchmarks for models that are not run here: their texts and the pictures that they are about.

`OUT/NAME/questions.jsonl` has a row a question, {"id", "images": paths beside the file, "question"}, in the release's
wording with pictures resized as the release resizes them. Answers {"id", "prediction": text} go to `vlm3 score`.
"""

import json
from collections.abc import Sequence

from vlm3_jax import storage
from vlm3_jax.evaluate import manifest
from vlm3_jax.evaluate.benchmarks import Asked
from vlm3_jax.evaluate.frozen import FrozenQuestions
from vlm3_jax.evaluate.items import Questions
from vlm3_jax.evaluate.swap import SWAPPED
from vlm3_jax.files import write_text
from vlm3_jax.model import sizes
from vlm3_jax.processor.image import VisionSpec
from vlm3_jax.tasks.protocol import RELEASE

FILE, PICTURES = "questions.jsonl", "images"


def hand_out(
    asked: Sequence[Asked], out, limit: int | None = None, labels: int | None = None
) -> tuple[dict[str, int], dict[str, str]]:
    """Writes the questions of all benchmarks whose data are there; how many of each, and why others were left out.

    `limit`, `labels`: of each only so many records, evenly spaced, and so many points or matches of each record.
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
        questions = FrozenQuestions(found, RELEASE[one.benchmark.task], spec, limit=limit, labels=labels)
        rows = [
            row
            for number, brief in enumerate(questions.briefs)
            if not brief.component.endswith(SWAPPED)
            for row in _rows(questions[number], out / one.key, number)
        ]
        write_text(out / one.key / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        counts[one.key] = len(rows)
    return counts, missing


def _rows(questions: Questions, folder, number: int):
    """The rows about a record, its pictures written."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    names = [f"{PICTURES}/{number:06d}-{view}.png" for view in range(len(questions.images))]
    for name, layout in zip(names, questions.images, strict=True):
        layout.picture().save(folder / name, compress_level=1)
    for id, example in zip(questions.ids, questions.examples, strict=True):
        yield {"id": id, "images": names, "question": example.question}
