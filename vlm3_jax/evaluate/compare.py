"""Several models on the same questions: their scores, and paired differences item by item."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import outputs, scoring, tables
from vlm3_jax.evaluate.results import Results, arrow, interval
from vlm3_jax.evaluate.scoring import Cell


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """The last of the runs is the subject; `gains`: subject - other by other's label, then by (component, task).

    `common`: of how many questions a gain is, where either run has answered others too.
    """

    cells: Mapping[str, list[Cell]]
    results: Mapping[str, Results]
    gains: Mapping[str, Mapping[tuple[str, str], tuple[float, float, float]]]
    tables: tables.Tables
    common: Mapping[str, Mapping[tuple[str, str], int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, runs: Mapping[str, storage.AnyPath]) -> "Compared":
        """Of output folders by label; their answers are scored anew, and nothing is written there.

        UserError if one has no answers.
        """
        cells = {label: scoring.read_cells(folder) for label, folder in runs.items()}
        results = {label: scoring.score(found) for label, found in cells.items()}
        subject = list(runs)[-1]
        gains = {other: scoring.before_after(cells[other], cells[subject]) for other in runs if other != subject}
        common = {other: scoring.in_common(cells[other], cells[subject]) for other in gains}
        owns = [tables.Own.of(label, results[label], folder) for label, folder in runs.items()]
        return cls(cells, results, gains, tables.of([own for own in owns if own.found]), common)

    @property
    def subject(self) -> str:
        """The last run's label."""
        return list(self.cells)[-1]

    def rich(self):
        """For the terminal: the tables of benchmarks, then each component's scores and paired differences."""
        import rich.box
        import rich.console
        import rich.table

        table = rich.table.Table(
            title="Scores and paired differences with 95 % intervals (images resampled)", box=rich.box.SIMPLE_HEAD
        )
        table.add_column("asked", overflow="fold")
        for label in self.cells:
            table.add_column(label, justify="right")
        for other in self.gains:
            table.add_column(f"{self.subject} - {other}", justify="right")
        for row in self.rows():
            name = f"{row['component']}: {row['headline']} {row['arrow']}"
            scores = [interval(*row["scores"][label]) if label in row["scores"] else "–" for label in self.cells]
            gains = [interval(*row["gains"][one], sign="+") if one in row["gains"] else "–" for one in self.gains]
            table.add_row(name, *scores, *gains)
        notes = [
            f"  {component}: {self.subject} - {other} is over the {count:,} questions that both answered"
            for other, counts in self.common.items()
            for (component, _), count in counts.items()
        ]
        return rich.console.Group(self.tables.rich(), table, *notes)

    def rows(self) -> list[dict[str, Any]]:
        """A row a component and task of any run, JSON-able."""
        entries = {(e.component, e.task): e for results in self.results.values() for e in results.entries}
        found = []
        for (component, task), entry in entries.items():
            models = {
                label: own.scores["model"]
                for label, results in self.results.items()
                if (own := results.entry(component, task))
            }
            found.append(
                {
                    "component": component,
                    "task": task,
                    "headline": entry.headline,
                    "arrow": arrow(entry),
                    "scores": {label: (one.value, one.low, one.high) for label, one in models.items()},
                    "gains": {
                        other: gains[component, task]
                        for other, gains in self.gains.items()
                        if (component, task) in gains
                    },
                }
            )
        return found


def labels(folders: list[storage.AnyPath]) -> list[str]:
    """What runs are called: who gave the answers where folders tell and that is clear, else the folders' names.

    UserError for a folder that is there twice.
    """
    for number, folder in enumerate(folders):
        if folder.absolute() in [other.absolute() for other in folders[:number]]:
            raise UserError(f"{folder}: given twice; a run is not compared with itself")
    told = [outputs.answers_by(folder) for folder in folders]
    names = [folder.absolute().name for folder in folders]
    for found in (told, names):
        if all(found) and len(set(found)) == len(found):
            return found
    return [str(folder) for folder in folders]
