"""Labels that a source leaves out of its records: counted, and told one by one until they are too many."""

import threading
import typing
from collections.abc import Sequence

from vlm3_jax.records import Removed

# So many records are told of each source; of more, one whenever their number has doubled.
MOST_RECORDS = 100


class Told(typing.NamedTuple):
    """What was left out of a record: its number in the source, its file and id; which label, and why."""

    index: int
    file: str
    record: str
    label: str
    reason: str


class RemovedLabels:
    """Of the records that were read so far. Records may be read by several threads, and again."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts: dict[int, int] = {}
        self._told: dict[str, list[Told]] = {}
        self._untold_labels = self._untold_records = 0

    @property
    def count(self) -> int:
        """How many labels."""
        return sum(self._counts.values())

    def add(self, index: int, file: str, record: str, removed: Sequence[Removed]) -> None:
        """What was left out of record `index`, which is called `record`; each is counted once."""
        if not removed:
            return
        with self._lock:
            if index in self._counts:
                return
            self._counts[index] = labels = sum(one.count for one in removed)
            number = len(self._counts)
            if number > MOST_RECORDS and number & (number - 1):
                self._untold_labels += labels
                self._untold_records += 1
                return
            self._told[record] = [Told(index, file, record, one.label, one.reason) for one in removed]

    def take(self, record: str) -> list[Told]:
        """What there is to tell of a record, once."""
        with self._lock:
            return self._told.pop(record, [])

    def rest(self) -> str:
        """How many are not told, in words; "" if all are."""
        with self._lock:
            if not self._untold_records:
                return ""
            return f"{self._untold_labels:,} labels of {self._untold_records:,} more records"
