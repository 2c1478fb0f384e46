"""What the shipped configs mix: the paper's sets, the demo's rendered scenes and the photographs of iBims-1.

The paper's sets are not part of this project. Each is looked for as ArrayRecord shards in $VLM3_DATA/FOLDER/NAME/train
(held out: .../held_out), VLM3_DATA being runs/data if it is not set. Their weights and sizes stand in tables/*.json,
with what was published and what is chosen here. Sets are asked about as the release asks (tasks/protocol.py).
"""

import os
import pathlib

import ml_collections

from vlm3_jax.config import component_config, group_config
from vlm3_jax.errors import UserError
from vlm3_jax.weighting import Table, read_table


def _shipped(name: str) -> Table:
    return read_table(pathlib.Path(__file__).parent / "tables" / f"{name}.json")


# Weights, numbers of records and typical images. Views of one scene are weighed by the number of their pairs.
DEPTH, OBJECTS, PAIRS = _shipped("depth"), _shipped("objects"), _shipped("pairs")
# Without depth there are no matches.
WITHOUT_DEPTH = ("realestate10k",)
# The least covisibility of a pair.
OVERLAP, OVERLAPS = 0.25, {"mpsd": 0.15}
# Folder, sets, those of them that the task has no use for, and questions of a record if not as many as the protocol
# asks: three of the pose questions are packed in one sample; of objects it is not published (several turns).
TASKS = {
    "depth": ("depth", DEPTH, (), 0),
    "objects": ("objects", OBJECTS, (), 6),
    "correspondence": ("pairs", PAIRS, WITHOUT_DEPTH, 0),
    "pose": ("pairs", PAIRS, (), 3),
}
# The paper trains one model a task, so the shares of a joint one are ours.
JOINT = {"depth": 0.4, "correspondence": 0.3, "pose": 0.2, "objects": 0.1}

# The demo's shares: depth is what minutes are enough for; pairs of images are harder.
RENDERED = {
    "short": {"depth": 0.91, "objects": 0.03, "correspondence": 0.03, "pose": 0.03},
    "long": {"depth": 0.16, "objects": 0.34, "correspondence": 0.20, "pose": 0.30},
}
# A depth question names one of 10 x 10 cells: the true median depth of its cell is within 25 % for 92 % of the pixels.
RENDERED_RANGE = {"depth": 10, "objects": 100, "correspondence": 100, "pose": 100}
# Object questions are long (two boxes each); a pair has four pose questions.
RENDERED_QUESTIONS = {"depth": 8, "objects": 4, "correspondence": 8, "pose": 4}


def add_paper(config, task: str, sets=(), share: float | None = None) -> None:
    """Adds the task's sets, or those of them that `sets` names, with their held-out parts.

    `share`: they are a group of that weight, named as the task, whose name stands before theirs; None: no group.
    """
    folder, table, _, questions = TASKS[task]
    chosen = [name for name in sorted(sets_of(task)) if not sets or name in sets]
    if chosen and share is not None:
        config.data.groups[task] = group_config(weight=share)
    for name in chosen:
        fields = {"task": task, "questions": questions, "weight": table.weights[name], "size": table.images[name]}
        if folder == "pairs":
            fields["covisibility_min"] = OVERLAPS.get(name, OVERLAP)
        root = f"{os.environ.get('VLM3_DATA', 'runs/data')}/{folder}/{name}"
        label = name if share is None else f"{task}_{name}"
        group = {"group": "" if share is None else task, "records": table.records[name]}
        config.data.components[label] = component_config(path=f"{root}/train", **fields, **group)
        config.eval.components[label] = component_config(path=f"{root}/held_out", **fields)


def sets_of(task: str) -> list[str]:
    """The names of a task's sets, in the order of their table."""
    _, table, useless, _ = TASKS[task]
    return [name for name in table.weights if name not in useless]


def check_sets(name: str, sets, tasks) -> None:
    """UserError, with the names there are, if one of `sets` is no set of the tasks of config `name`."""
    known = {known: None for task in tasks for known in sets_of(task)}
    for unknown in sets:
        if unknown not in known:
            raise UserError(f"--config={name}: no set {unknown!r}; there are {', '.join(known)}")


def add_rendered(config, weights: dict[str, float]) -> None:
    """Adds the demo's scenes as a component of each task; `weights` by task, as in `RENDERED`."""
    for task, weight in weights.items():
        fields = component_config(
            path="runs/demo/data/train",
            task=task,
            weight=weight,
            protocol="short",
            coord_range=RENDERED_RANGE[task],
            questions=RENDERED_QUESTIONS[task],
            flip=0.5,
            covisibility_min=OVERLAP if task in ("correspondence", "pose") else 0.0,
        )
        held_out = fields.copy_and_resolve_references()
        held_out.path, held_out.flip = "runs/demo/data/held_out", 0.0
        config.data.components[f"synth_{task}"] = fields
        config.eval.components[f"synth_{task}"] = held_out


def ibims1(**fields) -> ml_collections.ConfigDict:
    """Depth of iBims-1's photographs, in VLM3_SAMPLES (default ../shared/data), in the demo's wording.

    It is z-depth: the walls of its rooms are flat under z only (tests/data/test_sources.py).
    """
    folder = os.environ.get("VLM3_SAMPLES", "../shared/data")
    return component_config(
        kind="depthlm",
        path=f"{folder}/ibims1/ibims1.jsonl",
        images=f"{folder}/ibims1",
        depth_kind="z",
        task="depth",
        protocol="short",
        **fields,
    )
