"""One process's share of the answers: unit by unit, the next one's images decoded while the device is busy."""

import concurrent.futures
import dataclasses
import typing
from collections.abc import Iterator, Sequence

import rich.console
import rich.progress

from vlm3_jax.errors import BadRecord
from vlm3_jax.evaluate.items import Questions, briefs
from vlm3_jax.evaluate.parts import Parts, keys, read_parts
from vlm3_jax.evaluate.plan import Unit
from vlm3_jax.evaluate.predictions import rows
from vlm3_jax.evaluate.spreads import TASK, Spreads
from vlm3_jax.processor.image import ImageLayout, VisionSpec


class Answerer(typing.Protocol):
    """Whoever answers: the inference engine, another model, a test."""

    def answer(self, images: list[tuple[ImageLayout, ...]], questions: list[list[str]]) -> list[list[str]]:
        """One answer a question; `questions[i]` are all about `images[i]` and independent of each other."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of the work a process does: every `of`-th unit, from number `process` on."""

    process: int = 0
    of: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A record as it is asked about: `images` are what is shown, `keys` what identifies each question.

    `places`: (variant, record, question) by number, which is where the answers belong. `bad`: why it cannot be shown.
    """

    questions: Questions
    images: tuple[ImageLayout, ...]
    keys: list[str]
    places: list[tuple[int, int, int]]
    bad: str = ""


def answer_share(
    answerer: Answerer,
    asked: Sequence[Questions],
    units: Sequence[Unit],
    own: Parts,
    share: Share,
    spec: VisionSpec | None = None,
    progress: bool = True,
    spreads: Spreads | None = None,
) -> None:
    """Appends to `own` the answers of a share's units, but for those units that any process has answered whole.

    With a `spec` images are decoded ahead, and a record whose image cannot be read gets a row that says so. With
    `spreads` these answer about depth, where images are as they are, in place of `answerer`.
    """
    mine = units[share.process :: share.of]
    about = briefs(asked)
    counts = [sum(about[number].questions for number in unit.records) for unit in mine]
    done: dict[tuple[int, ...], tuple[int, str]] = {}
    for row in read_parts(own.folder):
        done[tuple(row["place"])] = max(done.get(tuple(row["place"]), (0, "")), (row["turn"], row["key"]))
    who = f"answers of process {share.process} of {share.of}" if share.of > 1 else "answers"
    with _progress(progress) as bar:
        job = bar.add_task(who, total=sum(counts))
        for of_unit, unit, count in zip(_ahead(asked, mine, spec, done), mine, counts, strict=True):
            if of_unit is not None:
                own.append(_answered(answerer, of_unit, unit.name, done, spreads if unit.name == "model" else None))
            bar.advance(job, count)


def shown(own: tuple[ImageLayout, ...], given: tuple[ImageLayout, ...], variant: str) -> tuple[ImageLayout, ...]:
    """The images shown with a record's questions: its own ("model"), grey ("blind") or another's ("shuffled").

    "shuffled" keeps the sizes and takes the pixels of `given`.
    """
    if variant == "model":
        return own
    if variant == "blind":
        return tuple(dataclasses.replace(layout, blank=True) for layout in own)
    return tuple(
        dataclasses.replace(p, ref=d.ref, flip=d.flip, resized=d.resized) for p, d in zip(own, given, strict=True)
    )


def _ahead(asked, units: Sequence[Unit], spec, done: dict) -> Iterator[list[Shown] | None]:
    """The records of each unit, those of the next being made meanwhile; None for a unit that is done."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(_unit, asked, unit, spec, done) for unit in units[:1]]
        for following in [*units[1:], None]:
            if following is not None:
                waiting.append(pool.submit(_unit, asked, following, spec, done))
            if waiting:
                yield waiting.pop(0).result()


def _unit(asked, unit: Unit, spec, done: dict) -> list[Shown] | None:
    records = [_shown(asked, unit, n, donor) for n, donor in zip(unit.records, unit.donors, strict=True)]
    answers = [(place, key) for record in records for place, key in zip(record.places, record.keys, strict=True)]
    if all(place in done and done[place][1] == key for place, key in answers):
        return None
    return [_decoded(record, spec) for record in records] if spec else records


def _shown(asked, unit: Unit, number: int, donor: int) -> Shown:
    questions = asked[number]
    images = shown(questions.images, (questions if donor == number else asked[donor]).images, unit.name)
    places = [(unit.variant, number, k) for k in range(len(questions.examples))]
    try:
        return Shown(questions, images, keys(questions, images), places)
    except BadRecord as error:
        return Shown(questions, images, [""] * len(places), places, str(error))


def _decoded(record: Shown, spec: VisionSpec) -> Shown:
    try:
        return dataclasses.replace(record, images=tuple(layout.loaded(spec) for layout in record.images))
    except BadRecord as error:
        return dataclasses.replace(record, bad=str(error))


def _answered(answerer: Answerer, records: list[Shown], variant: str, done: dict, spreads) -> Iterator[dict]:
    """A unit's rows. `turn`: above that of a row of the same place, whose image has since been replaced."""
    good = [record for record in records if not record.bad]
    explored = [record for record in good if spreads is not None and record.questions.task == TASK]
    plain = _said(answerer, [record for record in good if record not in explored])
    answers = _said(spreads, explored) | {record: [(text, {}) for text in texts] for record, texts in plain.items()}
    for record in records:
        texts, besides = zip(*answers.get(record, [("", {})] * len(record.places)), strict=True)
        made = rows(record.questions, variant, texts)
        for place, key, row, beside in zip(record.places, record.keys, made, besides, strict=True):
            turn = done[place][0] + 1 if place in done else 1
            yield {"place": place, "key": key, "turn": turn, "bad": record.bad, **row, **beside}


def _said(answerer, records: list[Shown]) -> dict[Shown, list]:
    """What somebody answers about records."""
    texts = [[example.question for example in record.questions.examples] for record in records]
    said = answerer.answer([record.images for record in records], texts) if records else []
    return dict(zip(records, said, strict=True))


def _progress(shown: bool) -> rich.progress.Progress:
    return rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
        disable=not shown,
    )
