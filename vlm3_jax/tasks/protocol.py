"""How a model is asked: wording, range of coordinates, resize rule. A score means something only beside its protocol.

The protocol that a model was trained under is written beside it (`vlm3.json`) and read whenever it is opened, so that
nobody has to remember that pose was asked at 750 px per axis. Mixture entries and benchmarks name one too.
"""

import dataclasses
import json
from collections.abc import Mapping

from vlm3_jax import storage
from vlm3_jax.camera import AsIs, AtMost, Focal, Longest, Resize, resize_rule
from vlm3_jax.errors import UserError
from vlm3_jax.files import read_json, write_text

WORDINGS = ("release", "paper", "short")
FILE = "vlm3.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Protocol:
    """`wording`: "release" (the published checkpoints' prompts), "paper", or "short" (our own, for tiny models).

    Coordinates lie in [0, `coord_range`); `resize` is applied to every image before it is shown; `think` adds the
    release's step-by-step suffix to the correspondence question; at most `questions` are asked about one record.
    `marker`: a depth question names its point by an arrow that is drawn into the image, as DepthLM does, not by
    coordinates; every question then needs an image of its own. ValueError for a value that no protocol has.
    """

    task: str
    wording: str = "release"
    coord_range: int = 1000
    resize: Resize = Focal(1000.0)  # noqa: RUF009
    think: bool = False
    questions: int = 10
    marker: bool = False

    def __post_init__(self):
        if self.wording not in WORDINGS:
            raise ValueError(f"wording is {self.wording!r}; choose one of {WORDINGS}")
        if not isinstance(self.resize, Focal | Longest | AsIs):
            raise ValueError(f"resize is {self.resize!r}, which is no resize rule")
        for field in ("coord_range", "questions"):
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise ValueError(f"{field} is {value!r}, but must be a whole number of at least 1")
        for field in ("think", "marker"):
            if type(value := getattr(self, field)) is not bool:
                raise ValueError(f"{field} is {value!r}, but must be true or false")
        if self.marker and (self.task != "depth" or self.wording == "paper"):
            raise ValueError(
                f"marker is for depth in the release's or the short wording, not {self.task}, {self.wording}"
            )
        if self.marker and self.questions != 1:
            raise ValueError(f"questions is {self.questions}, but with a marker every question needs its own image: 1")

    def facts(self) -> dict:
        """The protocol as JSON, the task left out: what stands under its name in `vlm3.json`."""
        fields = dataclasses.asdict(self) | {"resize": str(self.resize)}
        del fields["task"]
        # Programs that know of no marker can then read all other protocols.
        if not self.marker:
            del fields["marker"]
        return fields


# Conversations are as they are stored, whatever the wording; most of the other models' data show images of this size.
_STORED = (1000, AtMost(1024), False, 64)


def _table(wording: str, **fields: tuple) -> dict[str, Protocol]:
    return {task: Protocol(task, wording, *values) for task, values in fields.items()}


# What the published checkpoints expect (VLM3 release: notebook and sample labels).
RELEASE = _table(
    "release",
    depth=(2000, Focal(1000.0)),
    objects=(1000, Focal(1000.0)),
    correspondence=(1000, Longest(1024)),
    pose=(1000, Focal(750.0, "per_axis")),
    conversation=_STORED,
)
# The paper's text (arXiv 2605.30561); three of the pose questions are packed in one sample.
PAPER = _table(
    "paper",
    depth=(2000, Focal(1000.0)),
    objects=(2000, Focal(1000.0)),
    correspondence=(2000, Focal(1000.0, "per_axis")),
    pose=(2000, Focal(750.0, "per_axis"), False, 3),
    conversation=(2000, *_STORED[1:]),
)
SHORT = _table("short", **(dict.fromkeys(RELEASE, (100, Focal(128.0))) | {"conversation": (100, *_STORED[1:])}))
NAMED = {"release": RELEASE, "paper": PAPER, "short": SHORT}


def given(
    task: str,
    wording: str = "release",
    *,
    resize: str = "",
    coord_range: int = 0,
    questions: int = 0,
    think: bool = False,
    marker: bool = False,
) -> Protocol:
    """The named protocol of a task, with what is given in place of its own (a component's fields).

    With a marker one question is asked unless `questions` says otherwise. ValueError if a value is not allowed.
    """
    if wording not in NAMED:
        raise ValueError(f"protocol is {wording!r}; choose one of {WORDINGS}")
    own = NAMED[wording][task]
    questions = questions or int(marker)
    changes = {"coord_range": coord_range, "questions": questions, "resize": resize and resize_rule(resize)}
    changes = {field: value for field, value in changes.items() if value}
    return dataclasses.replace(own, think=think, marker=marker, **changes)


def read(folder) -> dict[str, Protocol]:
    """The protocols that `vlm3.json` in a model's folder tells of, by task; {} without one.

    UserError names file and field if it is not as it should be.
    """
    path = storage.path(folder) / FILE
    if not path.is_file():
        return {}
    tree = read_json(path)
    entries = tree.get("protocols") if isinstance(tree, dict) else None
    if not isinstance(entries, dict) or tree.get("version") != VERSION:
        raise UserError(f"{path}: expected version {VERSION} and protocols by task; write it again by an export")
    found = {}
    for task, fields in entries.items():
        try:
            if task not in RELEASE:
                raise ValueError(f"there is no such task; choose one of {', '.join(RELEASE)}")
            if not isinstance(fields, dict) or not isinstance(fields.get("resize"), str):
                raise ValueError("expected an object with resize as text")
            found[task] = Protocol(task, **fields | {"resize": resize_rule(fields["resize"])})
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: protocols.{task}: {error}") from None
    return found


def write(folder, protocols: Mapping[str, Protocol]) -> None:
    """Writes `vlm3.json` into a model's folder, whole or not at all."""
    tree = {"version": VERSION, "protocols": {task: protocols[task].facts() for task in sorted(protocols)}}
    write_text(storage.path(folder) / FILE, json.dumps(tree, indent=2) + "\n")
