"""Texts and numbers as answers: a jsonl with a row a question, or a row a record with the answers to all of its own."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from vlm3_jax import storage, tasks
from vlm3_jax.errors import UserError
from vlm3_jax.tasks.score import parsed


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """{"id": RECORD/NUMBER or NAME/RECORD/NUMBER, "prediction": text or numbers}, NUMBER counting a record's labels.

    Or {"id": RECORD, "prediction": [one for each label]}; null and NaN are no answer. `used`: ids that
    a question was found for. `spread`, a number or a list of as many, may stand beside the prediction: how far off it
    may be (m).
    """

    path: pathlib.Path
    found: dict[str, tuple[int, Any]]
    benchmark: str
    told: dict[str, Any]
    rules: str = "vlm3"
    used: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def read(cls, path: storage.AnyPath, benchmark: str, rules: str = "vlm3") -> "Rows":
        """Of a file. UserError names the line that is no such row, or has an id that was there before."""
        found: dict[str, tuple[int, Any]] = {}
        told: dict[str, Any] = {}
        try:
            with path.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        id, prediction, spread = _row(line, f"{path}, line {number}")
                        if id in found:
                            raise UserError(f"{path}, line {number}: id {id!r} is also on line {found[id][0]}")
                        found[id] = number, prediction
                        told |= {} if spread is None else {id: spread}
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"{path}: cannot read it ({why})") from None
        return cls(path, found, benchmark, told, rules)

    def answers(self, row, examples) -> list | None:
        """What the rows say to each question, None where there is none; None if the record has no row."""
        task = tasks.get(row.task)
        if (whole := self._take(row.id)) is not None:
            line, predictions = whole
            where = f"{self.path}, line {line}"
            if len(examples) == 1 and not isinstance(predictions, list):
                predictions = [predictions]
            if not isinstance(predictions, list) or len(predictions) != len(examples):
                raise UserError(f"{where}: record {row.id!r} has {len(examples)} questions; give a list of as many")
            return [self._said(task, one, example, where) for one, example in zip(predictions, examples, strict=True)]
        found = [self._take(f"{row.id}/{number}") for number in range(len(examples))]
        if not any(found):
            return None
        return [
            None if one is None else self._said(task, one[1], example, f"{self.path}, line {one[0]}")
            for one, example in zip(found, examples, strict=True)
        ]

    def spreads(self, row, count: int) -> list:
        """What is told of each of a record's questions, None where nothing is. UserError for another number of them."""
        of_all = self._told(row.id)
        if of_all is None:
            parts = [self._told(f"{row.id}/{number}") for number in range(count)]
        else:
            parts = of_all if isinstance(of_all, list) else [of_all]
        if len(parts) != count or any(isinstance(one, list) for one in parts):
            raise UserError(
                f"{self.path}: 'spread' of record {row.id!r}: it has {count} questions; give a list of as many, or one "
                "number beside each question's prediction"
            )
        return parts

    def unused(self) -> None:
        """UserError, once all records have been asked for, if a row belongs to no question or to one answered twice."""
        for id, (line, _) in self.found.items():
            if id not in self.used:
                asked = id.removeprefix(f"{self.benchmark}/")
                for other in (asked, asked.rpartition("/")[0]):
                    if used := {other, f"{self.benchmark}/{other}"} & self.used:
                        raise UserError(
                            f"{self.path}, line {line}: id {id!r} was answered by {used.pop()!r} already; keep one"
                        )
                raise UserError(f"{self.path}, line {line}: id {id!r} is no record or question of {self.benchmark}")

    def _take(self, id: str):
        for name in (id, f"{self.benchmark}/{id}"):
            if name in self.found:
                self.used.add(name)
                return self.found[name]
        return None

    def _told(self, id: str):
        return self.told.get(id, self.told.get(f"{self.benchmark}/{id}"))

    def _said(self, task, prediction, example, where: str):
        """The text as it is, or where another rule reads it, and of numbers, what it says."""
        if isinstance(prediction, str) and self.rules == "vlm3":
            return prediction
        return parsed(task, prediction, example.target, where, self.rules)


def _row(line: str, where: str) -> tuple[str, Any, Any]:
    """Id, prediction, and spread (None if there is none)."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not JSON; write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or "prediction" not in row:
        raise UserError(f"{where}: expected an object with 'id', a text, and 'prediction'")
    spread = row.get("spread")
    for value in spread if isinstance(spread, list) else [spread]:
        if value is not None and (type(value) not in (int, float) or not 0 < value < math.inf):
            raise UserError(f"{where}: 'spread' must be a positive number of metres, or a list of such")
    return row["id"], row["prediction"], spread
