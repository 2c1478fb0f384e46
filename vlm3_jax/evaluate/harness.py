"""Benchmarks as tasks of lmms-eval: the functions that their files name, and these files.

`OUT/vlm3_NAME.yaml` with `OUT/NAME/lmms.jsonl` is a task, `OUT/vlm3.yaml` the group of all; lmms-eval runs them
(--include_path=OUT --tasks=vlm3) with the questions and pictures of `vlm3 eval --questions`. Answers are read and
scored by this package, which must be installed beside lmms-eval; nothing here needs jax.
"""

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from vlm3_jax import storage, tasks
from vlm3_jax.files import write_text

ROWS, GROUP = "lmms.jsonl", "vlm3"
MAX_NEW_TOKENS = 256

_TASK = """\
# Made by vlm3 eval --questions=lmms; made again where the folder has another place.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function vlm3_jax.evaluate.harness.visuals
doc_to_text: !function vlm3_jax.evaluate.harness.text
doc_to_messages: !function vlm3_jax.evaluate.harness.messages
doc_to_target: answer
process_results: !function vlm3_jax.evaluate.harness.results
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
  do_sample: false
metric_list:
{metrics}metadata:
  version: 1.0
  manifest_sha256: {sha256}
"""
_METRIC = """\
  - metric: {name}
    aggregation: !function vlm3_jax.evaluate.harness.metric_{name}
    higher_is_better: {higher}
"""
# Of these neither more nor less is better.
_NEITHER = ("count", "pairs", "scale_bias")
# Metrics of which less is better, beside the headlines that say so themselves.
_ERRORS = ("abs_rel", "epe", "above", "error", "failures")


def visuals(doc: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a question, in their order."""
    found = []
    for path in doc["images"]:
        with Image.open(path) as picture:
            found.append(picture.convert("RGB"))
    return found


def text(doc: dict[str, Any], lmms_eval_specific_kwargs=None) -> str:
    """The question as it is; the harness adds nothing, since models were trained on these words."""
    return doc["question"]


def messages(doc: dict[str, Any], lmms_eval_specific_kwargs=None) -> list[dict[str, Any]]:
    """The question as a chat: the pictures, then the text, in one turn."""
    content = [{"type": "image", "url": picture} for picture in visuals(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def results(doc: dict[str, Any], answers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each metric's aggregation gets of one answer: its text and what it is scored against."""
    item = {"task": doc["task"], "prediction": answers[0], "target": json.loads(doc["target"])}
    return dict.fromkeys(doc["metrics"], item)


def __getattr__(name: str) -> Callable[[Sequence[dict[str, Any]]], float]:
    """`metric_NAME`, an aggregation: the task's metric NAME of all items."""
    if name.startswith("metric_"):
        return functools.partial(_metric, name.removeprefix("metric_"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _metric(name: str, items: Sequence[dict[str, Any]]) -> float:
    task = tasks.get(items[0]["task"])
    found = task.score([item["prediction"] for item in items], [item["target"] for item in items])
    return float(found.get(name, float("nan")))


def write_task(out: storage.AnyPath, name: str, sha256: str, rows: Sequence[dict[str, Any]]) -> None:
    """A benchmark's task: `rows` as handed out, each with "task", "answer" and "target" besides.

    `sha256`: of its manifest. Pictures are named by absolute paths, since the harness has no folder of its own.
    """
    task = tasks.get(rows[0]["task"])
    truths = [task.read(row["answer"], row["target"]) for row in rows]
    best = task.metrics(truths, [row["target"] for row in rows])
    # What is not asked about has no value even of true answers.
    metrics = [key for key, value in best.items() if key not in _NEITHER and not math.isnan(value)]
    folder = (out / name).absolute()
    lines = (
        json.dumps(
            row
            | {
                "images": [str(folder / image) for image in row["images"]],
                "target": json.dumps(row["target"]),
                "metrics": metrics,
            }
        )
        for row in rows
    )
    write_text(folder / ROWS, "".join(line + "\n" for line in lines))
    told = (_METRIC.format(name=key, higher=str(_higher(task, key)).lower()) for key in metrics)
    made = _TASK.format(
        name=f"{GROUP}_{name}",
        rows=json.dumps(str(folder / ROWS)),
        tokens=MAX_NEW_TOKENS,
        metrics="".join(told),
        sha256=sha256,
    )
    write_text(out / f"{GROUP}_{name}.yaml", made)


def write_group(out: storage.AnyPath, names: Sequence[str]) -> None:
    """The group of all tasks that stand in a folder."""
    lines = "".join(f"  - {GROUP}_{name}\n" for name in names)
    write_text(out / f"{GROUP}.yaml", f"group: {GROUP}\ntask:\n{lines}")


def _higher(task: tasks.Task, metric: str) -> bool:
    return task.higher_is_better if metric == task.headline else not any(word in metric for word in _ERRORS)
