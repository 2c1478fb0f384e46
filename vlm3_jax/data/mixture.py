"""The mixture: which record of which component the i-th draw is, for any i, as a function of the seed.

Components are interleaved in proportion to their weights, scaled to a smallest one of 100 and cut to whole numbers:
shares of draws are within 1 % of the shares asked. A record that is passed over costs its component a draw.
Nothing here depends on what was drawn before. A component's draws go through its records in passes: one after the
other, each in an order of its own.
A *phase* is a stretch of the run with constant weights. A new phase starts at the first index that no stream has
reached, and each component goes on where it stops there; slower streams finish the old phase. So a change of weights
neither repeats nor loses a record.
"""

import bisect
import dataclasses
import functools
import threading
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from grain.experimental import index_shuffle

from vlm3_jax.config_rules import check_component
from vlm3_jax.data.component import Component, SampleSettings
from vlm3_jax.data.samples import Bad, PassedOver, Sample
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import UserError

__all__ = ["Draw", "Mixture", "Phase", "build_components", "first_phase", "next_phase"]

# Which component is drawn is permuted in windows: the interleaving is periodic, and a stream that takes every R-th
# draw would otherwise see some components only.
WINDOW = 4096
# Windows kept: streams drift apart as they run.
WINDOWS = 256
# Up to this length permutations are kept as arrays: grain's, which needs no memory, takes 5 us beyond it, but 10 to 400
# us for small ones.
SMALL = 2**16


@dataclasses.dataclass(frozen=True)
class Phase:
    """Constant weights from mixture index `start` on.

    `weights`, `offsets` (draws of the component in earlier phases) and `lengths` (its records) are by component name.
    """

    start: int
    weights: dict[str, float]
    offsets: dict[str, int]
    lengths: dict[str, int]

    @property
    def names(self) -> list[str]:
        """The components drawn, in the order of the interleaving (whatever a saved file did to the order of keys)."""
        return sorted(self.weights)

    def shares(self) -> list[float]:
        """Weights in the order of `names`."""
        return [self.weights[name] for name in self.names]


@dataclasses.dataclass(frozen=True)
class Draw:
    """One draw: record `record` of component number `component`, in its `epoch`-th pass."""

    component: int
    record: int
    epoch: int


def first_phase(lengths: Mapping[str, int], weights: Mapping[str, float]) -> Phase:
    """The phase that a run starts with; UserError if no component has a weight."""
    weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
    if not weights:
        raise UserError("the mixture is empty: give at least one component a weight above 0")
    return Phase(0, weights, dict.fromkeys(lengths, 0), dict(lengths))


def next_phase(
    last: Phase, key: tuple[int, int], start: int, lengths: Mapping[str, int], weights: Mapping[str, float]
) -> Phase:
    """The phase with new weights from index `start` on; `last` is the one before, `key` its (seed, number).

    UserError if a component changed its number of records: its order would change with it.
    """
    for name in lengths.keys() & last.lengths.keys():
        if lengths[name] != last.lengths[name]:
            raise UserError(
                f"component {name!r} has {lengths[name]} records, and {last.lengths[name]} when the run started; "
                "restore the old data or rename the component (its records would then be drawn anew)"
            )
    offsets = dict.fromkeys(lengths, 0) | last.offsets
    for name, count in zip(last.names, _Order(last.shares(), key).counts(start - last.start), strict=True):
        offsets[name] += count
    fresh = first_phase(lengths, weights)
    return Phase(start, fresh.weights, offsets, {**last.lengths, **lengths})


class _Order:
    """The draws of a phase: draw j -> (number of the part, how many draws of that part came before).

    Parts are interleaved in proportion to `weights`, then permuted in windows; `key`: (seed, number of the phase).
    """

    def __init__(self, weights: Sequence[float], key: tuple[int, int]):
        self._weights, self._key = _integers(weights), key
        self._cached = functools.lru_cache(WINDOWS)(self._make_window)
        self._lock = threading.Lock()

    def __getitem__(self, draw: int) -> tuple[int, int]:
        window, place = divmod(draw, WINDOW)
        parts, ranks, before = self._window(window)
        part = int(parts[place])
        return part, before[part] + int(ranks[place])

    def counts(self, draws: int) -> list[int]:
        """How many of the first `draws` draws each part gets."""
        window, rest = divmod(draws, WINDOW)
        parts, _, before = self._window(window)
        taken = np.bincount(parts[:rest], minlength=len(before))
        return [first + int(own) for first, own in zip(before, taken, strict=True)]

    def _window(self, window: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        # One at a time: the cache has no lock, and threads that read side by side would all make the same window.
        with self._lock:
            return self._cached(window)

    def _make_window(self, window: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Part of each draw of a window and its rank among those of the same part, uint16 [WINDOW]; draws before."""
        drawn, before = interleaved(window * WINDOW, WINDOW, self._weights)
        parts = np.random.default_rng([*self._key, window]).permutation(drawn)
        ranks = np.empty(WINDOW, np.uint16)
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            ranks[here] = np.arange(len(here))
        return parts, ranks, before


def _integers(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers, the smallest 100."""
    scale = 100 / min(weights)
    return [int(weight * scale) for weight in weights]


def interleaved(first: int, count: int, weights: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Part of each of the draws from `first` on, uint16 [count], and how many draws each part got before them.

    Of the first n draws, those that the parts before have left, each part gets its share of what is left of the
    weights, rounded up; a draw goes to the part whose number it raises. (The rule of grain's `MapDataset.mix`.)
    """
    total, parts, before = sum(weights), np.empty(count, np.uint16), []
    # Draws that are left for a part: `first` and `more` behind it. Apart, since the products would not fit 64 bits.
    more = np.arange(count + 1, dtype=np.int64 if total * (count + 1) < 2**62 else object)
    for number, weight in enumerate(weights):
        passed_on, rest = divmod(first * (total - weight), total)
        more_passed_on = (rest + more * (total - weight)) // total
        parts[np.diff(more - more_passed_on).astype(bool)] = number
        before.append(first - passed_on)
        first, more, total = passed_on, more_passed_on, total - weight
    return parts, before


class Mixture:
    """Random access to the draws and samples of all `phases`.

    `components` in table order (a component's `number` is its place in the table); only those with a weight are drawn.
    UserError if a component of the last phase is missing; what one of an earlier phase would have given is left out.
    """

    def __init__(self, components: Sequence[Component], seed: int, phases: Sequence[Phase]):
        self.components = list(components)
        self.seed = seed
        self.phases = list(phases)
        self._numbers = {component.name: n for n, component in enumerate(self.components)}
        missing = [name for name in self.phases[-1].weights if name not in self._numbers]
        if missing:
            raise UserError(f"component {missing[0]!r} of the saved run is not in the configuration")
        self._starts = [phase.start for phase in self.phases]
        self._orders = [_Order(phase.shares(), (seed, number)) for number, phase in enumerate(self.phases)]

    def draw(self, index: int) -> Draw | None:
        """What mixture index `index` stands for; None if its component is gone."""
        number = self._phase(index)
        phase = self.phases[number]
        part, position = self._orders[number][index - phase.start]
        name = phase.names[part]
        if name not in self._numbers:
            return None
        length = phase.lengths[name]
        epoch, place = divmod(position + phase.offsets[name], length)
        # By name, so that adding or removing another leaves a component's order alone.
        record = permuted(place, length, (self.seed, zlib.crc32(name.encode()), epoch))
        return Draw(self._numbers[name], record, epoch)

    def _phase(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def sample(self, index: int) -> Sample | PassedOver | Bad:
        """What the record at mixture index `index` gives (`Component.sample`)."""
        draw = self.draw(index)
        if draw is None:
            return PassedOver("its component is no longer in the configuration")
        key = self.seed, self._phase(index), index
        return self.components[draw.component].sample(draw.record, key, self.id(draw))

    def describe(self, index: int) -> tuple[str, str, str]:
        """(sample id, component name, file) of mixture index `index`."""
        draw = self.draw(index)
        component = self.components[draw.component]
        return self.id(draw), component.name, str(component.source.path)

    def id(self, draw: Draw) -> str:
        """The sample's id: component, record and pass."""
        return f"{self.components[draw.component].name}/{draw.record}@{draw.epoch}"


def permuted(index: int, length: int, key: tuple[int, ...]) -> int:
    """Where a permutation of range(length), chosen by `key`, sends `index`."""
    if length <= SMALL:
        return int(_permutation(length, key)[index])
    top, seed = length - 1, _seed32(key)
    # grain 0.2.18 loses the last index where the largest one is a power of four: permute one more and skip it.
    top += top.bit_count() == 1
    place = index_shuffle(index, max_index=top, seed=seed, rounds=4)
    return place if place < length else index_shuffle(place, max_index=top, seed=seed, rounds=4)


@functools.lru_cache(maxsize=256)
def _seed32(key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@functools.lru_cache(maxsize=256)
def _permutation(length: int, key: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(key).permutation(length).astype(np.uint16)


def build_components(
    table: Mapping[str, Mapping], settings: SampleSettings, max_bad_fraction: float = 0.01
) -> list[Component]:
    """The components of a mixture table (name -> `component_config(...)`), in its order.

    Those of weight 0 are checked but not opened, so that a shared table may name data that is not at hand.
    """
    components = []
    for number, (name, fields) in enumerate(table.items()):
        fields = check_component(name, fields)
        if fields.weight > 0:
            source = make_source(name, fields, max_bad_fraction)
            components.append(Component(name, fields, source, settings, number))
    return components
