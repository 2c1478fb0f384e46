"""What the shipped configs mix: the paper's sets, the demo's rendered scenes and the photographs of iBims-1.

The paper's sets are not part of this project. Each is looked for as ArrayRecord shards in $VLM3_DATA/FOLDER/NAME/train
(held out: .../held_out), VLM3_DATA being runs/data if it is not set. Published: the sets, and their weights or numbers
of pairs. Not published, and chosen here: typical images, for planning (the street scenes' are nuScenes'), and what is
said at the tables. Sets are asked about as the release asks (tasks/protocol.py).
"""

import os

import ml_collections

from vlm3_jax.config import component_config
from vlm3_jax.errors import UserError

# Weight, and the width, height and focal length of a typical image in px.
DEPTH = {
    "argoverse2": (0.21, (2048, 1550, 1690)),
    "waymo": (0.04, (1920, 1280, 2055)),
    "nuscenes": (0.01, (1600, 900, 1266)),
    "scannetpp": (0.01, (1920, 1440, 1600)),
    "taskonomy": (0.51, (512, 512, 443)),
    "hm3d": (0.78, (640, 480, 525)),
    "matterport3d": (0.006, (1280, 1024, 1075)),
    "street_scenes": (1.0, (1600, 900, 1266)),
}
# The images of OpenSpatialDataset, calibrated one by one beforehand (they come without intrinsics).
OBJECTS = {"open_spatial": (1.0, (1024, 768, 900))}
# Views of one scene, which are weighed by their number: pairs in millions.
PAIRS = {
    "blended_mvs": (0.45, (768, 576, 640)),
    "dynamic_replica": (1.0, (1280, 720, 1000)),
    "sail_vos3d": (0.35, (1280, 800, 1158)),
    "scannetpp_pairs": (1.0, (1920, 1440, 1600)),
    "mpsd": (0.013, (2016, 1512, 1500)),
    "realestate10k": (0.88, (1280, 720, 700)),
    "dl3dv": (2.6, (960, 540, 480)),
    "megadepth": (0.19, (1600, 1200, 1300)),
    "ase": (2.0, (704, 704, 350)),
    "gta_sfm": (0.09, (640, 480, 580)),
    "tartanair_wb": (0.85, (640, 640, 320)),
    "unreal_stereo4k": (0.27, (3840, 2160, 1920)),
    "mvs_synth": (0.19, (1920, 1080, 1158)),
    "spring": (0.02, (1920, 1080, 1600)),
}
# Without depth there are no matches.
WITHOUT_DEPTH = ("realestate10k",)
# The least covisibility of a pair.
OVERLAP, OVERLAPS = 0.25, {"mpsd": 0.15}
# Folder, sets, and questions of a record if not as many as the protocol asks: three of the pose questions are packed in
# one sample; of objects it is not published (the data hold several turns).
TASKS = {
    "depth": ("depth", DEPTH, 0),
    "objects": ("objects", OBJECTS, 6),
    "correspondence": ("pairs", {name: PAIRS[name] for name in PAIRS if name not in WITHOUT_DEPTH}, 0),
    "pose": ("pairs", PAIRS, 3),
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

    `share`: together they weigh so much, and the task's name stands before theirs; None: they weigh what they do.
    """
    folder, table, questions = TASKS[task]
    chosen = {name: table[name] for name in sorted(table) if not sets or name in sets}
    total = sum(weight for weight, _ in chosen.values())
    for name, (weight, size) in chosen.items():
        fields = {"task": task, "questions": questions, "size": size}
        fields["weight"] = weight if share is None else share * weight / total
        if folder == "pairs":
            fields["covisibility_min"] = OVERLAPS.get(name, OVERLAP)
        root = f"{os.environ.get('VLM3_DATA', 'runs/data')}/{folder}/{name}"
        label = name if share is None else f"{task}_{name}"
        config.data.components[label] = component_config(path=f"{root}/train", **fields)
        config.eval.components[label] = component_config(path=f"{root}/held_out", **fields)


def check_sets(name: str, sets, tasks) -> None:
    """UserError, with the names there are, if one of `sets` is no set of the tasks of config `name`."""
    known = {known: None for task in tasks for known in TASKS[task][1]}
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
