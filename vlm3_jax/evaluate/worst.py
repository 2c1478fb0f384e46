"""Which records a model answered worst, so that a report can show them."""

import collections
from collections.abc import Sequence

import numpy as np

from vlm3_jax.evaluate.scoring import Cell
from vlm3_jax.evaluate.swap import SWAPPED

# So many of each component are shown.
RECORDS = 4


def worst_records(cell: Cell, limit: int = RECORDS) -> list[str]:
    """At most `limit` records of the model's answers, the one with the largest mean error (`Task.item_errors`) first.

    Those without any error are left out; of equal ones the first asked is worse.
    """
    answers = cell.model
    errors = cell.task.item_errors(answers.parsed, answers.targets)
    of_record = collections.defaultdict(list)
    for record, error, score in zip(answers.records, errors, answers.scores, strict=True):
        if not np.isnan(error):
            of_record[record].append((error, score))
    best = 1.0 if cell.task.higher_is_better else 0.0
    mean = {
        record: np.mean([error for error, _ in of_one])
        for record, of_one in of_record.items()
        if any(score != best for _, score in of_one)
    }
    return sorted(mean, key=lambda record: -mean[record])[:limit]


def worst_of(cells: Sequence[Cell]) -> set[tuple[str, str]]:
    """(component, record) of the worst of every cell; pairs turned round are the same pairs."""
    return {
        (cell.component, record)
        for cell in cells
        if not cell.component.endswith(SWAPPED)
        for record in worst_records(cell)
    }
