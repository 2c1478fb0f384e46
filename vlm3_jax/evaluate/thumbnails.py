"""Small pictures beside the predictions, so that a report never opens the data again.

They are what the model was shown: of a few records of each task, evenly spaced over the evaluation and never chosen by
score, and apart from these, of those that it answered worst.
"""

import collections
import contextlib
import hashlib
import io
import pathlib
import re
import shutil
from collections.abc import Collection, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from vlm3_jax import storage
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate.items import Questions, briefs
from vlm3_jax.evaluate.swap import SWAPPED
from vlm3_jax.files import replace_dir

FOLDER, WORST = "thumbnails", "worst"
# So many records of a task are shown, and so many pixels a side of an image.
RECORDS = 6
MAX_SIDE = 440

T = TypeVar("T")


def write_thumbnails(folder: pathlib.Path, asked: Sequence[Questions], worst: Collection[tuple[str, str]] = ()) -> None:
    """`folder`/thumbnails/*.jpg of the records that a report may show, in place of what was there.

    `worst`: (component, record) of those that are also to stand in `folder`/thumbnails/worst.
    """
    target = pathlib.Path(folder) / FOLDER
    tmp = target.with_name(FOLDER + ".part")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    by_task = collections.defaultdict(list)
    bad, left = [], set(worst)
    if left:
        (tmp / WORST).mkdir()
    for number, brief in enumerate(briefs(asked)):
        if not brief.component.endswith(SWAPPED):
            by_task[brief.task].append(number)
        if (brief.component, brief.record) in left:
            left.remove((brief.component, brief.record))
            bad.append(number)
    even = [number for numbers in by_task.values() for number in spread(numbers)]
    for place, numbers in ((tmp, even), (tmp / WORST, bad)):
        for number in numbers:
            # One whose image cannot be read has no scores to look at either.
            with contextlib.suppress(BadRecord):
                _write(place, asked[number])
    replace_dir(tmp, target)


def _write(folder: pathlib.Path, questions: Questions) -> None:
    for number, layout in enumerate(questions.images):
        picture = layout.picture()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        picture.save(folder / _name(questions.component, questions.record, number), quality=88, optimize=True)


def read_thumbnails(folder: storage.AnyPath, component: str, record: str, worst: bool = False) -> list[np.ndarray]:
    """The record's pictures in their order, uint8 [h, w, 3]; none if it has none. UserError for a damaged file.

    `worst`: those of the records that were answered worst, else those of the evenly spaced.
    """
    pictures, place = [], storage.path(folder) / FOLDER
    place = place / WORST if worst else place
    while (path := place / _name(component, record, len(pictures))).is_file():
        try:
            with Image.open(io.BytesIO(path.read_bytes()), formats=("JPEG",)) as image:
                if max(image.size) > MAX_SIDE:
                    raise ValueError(f"{image.width} x {image.height} pixels is no thumbnail")
                pictures.append(np.asarray(image.convert("RGB")))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{path}: not a picture ({error}); delete it to go without") from None
    return pictures


def spread(things: Sequence[T], limit: int = RECORDS) -> list[T]:
    """At most `limit` of the things, evenly spaced."""
    return [things[k * len(things) // limit] for k in range(limit)] if len(things) > limit else list(things)


def _name(component: str, record: str, number: int) -> str:
    """A file name that people recognise and that no name of a record can lead elsewhere."""
    name = f"{component}/{record}"
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:60]
    return f"{readable}-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}-{number}.jpg"
