"""The questions of a benchmark, as a model is to be asked them: a manifest's labels about its built records' images."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm3_jax import marker, records, storage, tasks
from vlm3_jax.data.sources.array_record import ArrayRecordSource
from vlm3_jax.errors import BadRecord
from vlm3_jax.evaluate.items import Brief, Questions
from vlm3_jax.evaluate.manifest import Manifest, Row
from vlm3_jax.evaluate.swap import SWAPPED
from vlm3_jax.processor.image import VisionSpec, image_layout
from vlm3_jax.records import Record
from vlm3_jax.tasks.base import Example
from vlm3_jax.tasks.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class Place:
    """What is asked together: a row of the manifest, one `point` of it (where each needs an image), or it swapped."""

    row: int
    point: int | None = None
    swapped: bool = False


def examples(row: Row, record: Record, protocol: Protocol) -> list[Example]:
    """The questions about a row, of its record resized by the protocol; their numbers are those of its labels."""
    found = tasks.get(row.task).frozen(record, protocol)
    return [dataclasses.replace(example, target=example.target | row.target) for example in found]


def chosen_rows(count: int, limit: int | None) -> list[int]:
    """At most `limit` of so many rows, evenly spaced (None: all)."""
    limit = count if limit is None else min(limit, count)
    return [number * count // limit for number in range(limit)] if limit else []


class FrozenQuestions(Sequence):
    """A `Questions` a record of a manifest, in its order, with every label that it names; ids number these labels.

    Pairs of cameras are asked about both ways, the second under the component NAME (swapped). With markers each point
    is asked by itself, and those too near to the border for one are not. `limit`: only so many records, evenly spaced;
    `labels`: of points and matches only the first so many of each record.
    """

    def __init__(
        self,
        manifest: Manifest,
        protocol: Protocol,
        spec: VisionSpec,
        built: storage.AnyPath | None = None,
        limit: int | None = None,
        labels: int | None = None,
    ):
        self.manifest, self.protocol, self.spec = manifest, protocol, spec
        self.name = manifest.asked.key
        self._source = ArrayRecordSource(self.name, built or manifest.asked.folder)
        self.places: list[Place] = []
        self.briefs: list[Brief] = []
        self._limit, self._labels, self._at_border = limit, labels, 0
        for number in chosen_rows(len(manifest), limit):
            self._survey(number)

    @property
    def partial(self) -> str:
        """What of the manifest is not asked about, in a few words; "" if nothing."""
        whole = len(self.manifest)
        parts = [f"{self._limit} of {whole} records"] if self._limit and self._limit < whole else []
        parts += [f"at most {self._labels} labels each"] if self._labels and self._has_labels else []
        parts += [f"{self._at_border} points too near to the border"] if self._at_border else []
        return ", ".join(parts)

    @property
    def _has_labels(self) -> bool:
        return self.manifest.asked.benchmark.task in ("depth", "correspondence")

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Questions:
        place = self.places[number]
        row = self.manifest[place.row]
        stored = self._source[row.index]
        if stored.id != row.id or [tuple(v) for v in _sizes(stored)] != [tuple(v) for v in _sizes(row.record)]:
            raise BadRecord(f"{self.manifest.name}: record {row.index} is {stored.id!r}, not {row.id!r} as frozen")
        views = [
            dataclasses.replace(view, image=real.image, final=real.final)
            for view, real in zip(row.record.views, stored.views, strict=True)
        ]
        return self._questions(row, dataclasses.replace(row.record, views=tuple(views)), place)

    def _survey(self, number: int) -> None:
        row = self.manifest[number]
        whole = self._questions(row, row.record, Place(number))
        if self.protocol.marker:
            camera = records.unify(row.record, self.protocol.resize).views[0].camera
            fits = marker.fits([e.marker for e in whole.examples], camera.width, camera.height)
            self._at_border += int((~fits).sum())
            for point in np.flatnonzero(fits).tolist():
                self._add(Place(number, point), dataclasses.replace(whole.brief, questions=1))
            return
        self._add(Place(number), whole.brief)
        if row.task == "pose":
            self._add(Place(number, swapped=True), self._questions(row, row.record, Place(number, swapped=True)).brief)

    def _add(self, place: Place, brief: Brief) -> None:
        self.places.append(place)
        self.briefs.append(brief)

    def _questions(self, row: Row, record: Record, place: Place) -> Questions:
        if place.swapped:
            record = dataclasses.replace(record, views=record.views[::-1])
        record = records.unify(record, self.protocol.resize)
        asked, first = examples(row, record, self.protocol)[: self._labels if self._has_labels else None], 0
        if place.point is not None:
            asked, first = asked[place.point : place.point + 1], place.point
        arrow = asked[0].marker if place.point is not None else None
        images = tuple(image_layout(record.views[v], self.spec, arrow) for v in asked[0].views)
        component = self.name + SWAPPED * place.swapped
        return Questions(component, record.id, row.task, images, tuple(asked), first, row.scene)


def _sizes(record: Record):
    return [(camera.width, camera.height) for camera in record.cameras]
