"""Conversations as they are stored, made into questions and answers: regions in words, images at their places.

SpatialRGPT's data mark a region by "<mask>" (then "<depth>", its second feature) in a question and by "Region [i]" in
an answer, counted within the turn; here both are written as the boxes that the published prompts have. All other text
stays as it is.
"""

import collections
import re
import string

from vlm3_jax.errors import BadRecord
from vlm3_jax.records import Record
from vlm3_jax.records.conversation import IMAGE, Turn
from vlm3_jax.tasks import objects_answers as answers
from vlm3_jax.tasks.base import Example, drop_think
from vlm3_jax.tasks.objects_words import region
from vlm3_jax.tasks.protocol import Protocol

# The kind and family of targets whose answers are told by the data.
FAMILY = "stored"
_MASK = re.compile(r"<mask>(?:\s*<depth>)?")
_NUMBERED = re.compile(r"\bRegion\s*\[(\d+)\]", re.IGNORECASE)
_CLOCK = re.compile(r"o\s?'?\s?clock", re.IGNORECASE)


def examples(record: Record, protocol: Protocol, alone: bool = False) -> list[Example]:
    """Every question of the record's conversation with its answer, in order; [] if a crop has left out a region.

    `alone`: the questions as those of other tasks are, after all images and without what else is said; those whose
    regions are left out are not among them. BadRecord if an answer names a region that there is not.
    """
    conversation = record.conversation
    shown = conversation.shown(record.cameras)
    if not (alone or shown.all()):
        return []
    turns = list(conversation.turns)
    system = turns.pop(0).text if turns[0].role == "system" else ""
    boxes = conversation.normalised(record.cameras, protocol.coord_range).tolist()
    views = tuple(view for turn in turns for view in turn.images)
    found = []
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        if not shown[list(asked.regions)].all():
            continue
        own = [boxes[n] for n in asked.regions]
        parts = _parts(asked, own)
        answer = _answer(record.id, answered.text, own, boxes) if own else answered.text
        target = {"kind": FAMILY, "family": FAMILY, "truth": answer, "boxes": own, "coord_range": protocol.coord_range}
        question = "".join(part for part in parts if part is not None)
        whole = () if alone else (parts, system)
        found.append(Example(question, answer, target, views, *whole))
        system = ""
    return found


def _parts(turn: Turn, boxes: list) -> tuple[str | None, ...]:
    """The turn's text in pieces, None where an image is shown; regions as boxes."""
    text = turn.text
    if boxes:
        remaining = iter(boxes)
        text = _MASK.sub(lambda _: region(next(remaining)), text, count=len(boxes))
    if not turn.images:
        return (text,)
    pieces = text.split(IMAGE, len(turn.images))
    missing = len(turn.images) - (len(pieces) - 1)
    parts: list[str | None] = [None] * missing
    for number, piece in enumerate(pieces):
        # The line break after "<image>" parts it from the text, and is not shown.
        piece = piece.rstrip() if number < len(pieces) - 1 else piece
        piece = piece.lstrip() if number or missing else piece
        parts += ([None] if number else []) + ([piece] if piece else [])
    return tuple(parts)


def _answer(name: str, text: str, own: list, boxes: list) -> str:
    """An answer with its regions in words; numbers beyond those of its own question count all of the conversation."""

    def box(match: re.Match) -> str:
        number = int(match[1])
        known = own if number < len(own) else boxes
        if number >= len(known):
            raise BadRecord(f"{name}: an answer speaks of Region [{number}], there are {len(boxes)} regions")
        return region(known[number])

    return _NUMBERED.sub(box, text)


def plain(text: str) -> str:
    """Text without case, outer punctuation and spaces, and thinking: what exact answers are compared by."""
    words = " ".join(drop_think(text).casefold().split())
    return words.strip(string.punctuation + " ")


def read(text: str, truth: str) -> float | bool | int | str | None:
    """An answer in the form that the true one has: an hour, metres, yes or no, or else its `plain` text."""
    form = _form(truth)
    return form(text) if form else plain(text) or None


def same(parsed, truth: str) -> bool:
    """Whether a parsed answer is right: within one hour, within 25 %, the same yes or no, the same text."""
    right = read(truth, truth)
    form = _form(truth)
    if form is answers.hour:
        return min((parsed - right) % 12, (right - parsed) % 12) <= 1
    if form is answers.metres:
        return 0.75 * right <= parsed <= 1.25 * right
    return parsed == right


def _form(truth: str):
    if _CLOCK.search(truth) and answers.hour(truth) is not None:
        return answers.hour
    if answers.metres(truth) is not None:
        return answers.metres
    return answers.polarity if answers.polarity(truth) is not None else None


def commonest(truths) -> float | bool | int | str | None:
    """The parsed form of the most frequent true answer."""
    truth = collections.Counter(truths).most_common(1)[0][0]
    return read(truth, truth)
