"""What the devices of a mesh send each other in one run of a compiled program, read from its HLO text.

The compiler's own totals count the body of a loop once. Here every loop counts as often as it runs: loops compare a
counter with a constant, and their bodies add a constant to it.
"""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from vlm3_jax.parallel.mesh import AXES

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64}
_BITS |= {"s8": 8, "u8": 8, "s16": 16, "u16": 16, "u64": 64}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r" ([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|true_computation|false_computation|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_GROUPS = re.compile(r"replica_groups=(\{\{[\d,]*\}|\{\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
# mesh['a'=2,'b'=4] {'b'}: the axes in braces vary within a group; in between perhaps how the mesh numbers its devices.
_MESH = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}")
_TUPLE = re.compile(r" tuple\((.*?)\)(?:,|$)")
_INNER = re.compile(r" [a-z][a-z\-]*\((.*?)\)(?:,|$)")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one device receives in one run, by (kind, mesh axes): the least that the collective can do with.

    For a group of n devices that is (n - 1) / n of what is gathered, scattered or exchanged, and twice that for an
    all-reduce.
    """

    bytes: dict[tuple[str, tuple[str, ...]], float]

    def over(self) -> dict[tuple[str, ...], float]:
        """Bytes by the mesh axes they cross."""
        total = collections.Counter()
        for (_, axes), size in self.bytes.items():
            total[axes] += size
        return dict(total)


def traffic(hlo: str, shape: tuple[int, int, int]) -> Traffic:
    """The collectives of a compiled program on a mesh of `shape` (replica, fsdp, tensor).

    ValueError if a loop that sends something does not say how often it runs.
    """
    program = _Program(hlo, math.prod(shape))
    total: collections.Counter = collections.Counter()
    for (kind, group), size in program.run(program.entry).items():
        total[kind, _axes(group, shape)] += size
    return Traffic(dict(total))


class _Program:
    """The computations of a program as lines of text."""

    def __init__(self, hlo: str, devices: int):
        self.devices = tuple(range(devices))
        self.lines: dict[str, list[str]] = {}
        self.entry = ""
        for line in hlo.splitlines():
            if line.endswith("{") and (head := _HEAD.match(line)):
                name = head[2]
                self.lines[name] = []
                self.entry = name if head[1] else self.entry
            elif line.startswith(" ") and self.lines:
                self.lines[name].append(line)
        self.run = functools.cache(self._run)

    def _run(self, name: str) -> dict:
        """{(kind, first group of devices): bytes} of one run of a computation, with all that it calls."""
        total: collections.Counter = collections.Counter()
        for line in self.lines[name]:
            match = _LINE.match(line)
            operation = match and _OPERATION.search(match[2])
            if not operation or operation[1].endswith(("-done", "-update")):
                continue
            kind = operation[1].removesuffix("-start")
            if kind in KINDS:
                # A TPU scatters by an all-reduce and a slice in one step, which has that name.
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                group = _group(line) or self.devices
                total[kind, group] += _received(kind, match[2][: operation.start()], operation[1], len(group))
                continue
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            times = self.trips(name, line) if kind == "while" else 1
            for inner in called:
                for key, size in self.run(inner).items():
                    if times is None:
                        raise ValueError(f"a loop of unknown length sends {key[0]}: {match[1]} of {name}")
                    total[key] += times * size
        return total

    def trips(self, name: str, line: str) -> int | None:
        """How often a loop of computation `name` runs; None where its data decide.

        Its condition compares a counter with a constant, the body adds a constant to it: 1, or more where the compiler
        has unrolled the loop.
        """
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        condition, body = _CONDITION.search(line)[1], _CALLED.search(line)[1]
        compared = re.search(r" compare\((.*?)\), direction=LT", self._root(condition))
        if not compared:
            return None
        counter, bound = (self._defined(condition, operand) for operand in _operands(compared[1]))
        place = re.search(r"index=(\d+)", counter)
        if not place or (last := _constant(bound)) is None:
            return None
        place = int(place[1])
        updated = self._defined(body, _operands(_TUPLE.search(self._root(body))[1])[place])
        steps = [_constant(self._defined(body, operand)) for operand in _operands(_INNER.search(updated)[1])]
        start = self._defined(name, _operands(_INNER.search(line)[1])[0])
        first = self._defined(name, _operands(_TUPLE.search(start)[1])[place]) if " tuple(" in start else ""
        step = next((step for step in steps if step), None)
        return step and -(-(last - (_constant(first) or 0)) // step)

    def _root(self, name: str) -> str:
        return next(x for x in self.lines[name] if x.lstrip().startswith("ROOT"))

    def _defined(self, name: str, value: str) -> str:
        """The line of a computation that makes a value; empty if it comes from elsewhere."""
        return next((x for x in self.lines[name] if (m := _LINE.match(x)) and m[1] == value), "")


def _operands(text: str) -> list[str]:
    """Names in a list of operands."""
    return [part.split("%")[-1].strip() for part in re.sub(r"/\*.*?\*/", "", text).split(",")]


def _constant(line: str) -> int | None:
    found = re.search(r" constant\((-?\d+)\)", line)
    return int(found[1]) if found else None


def _received(kind: str, result: str, operation: str, n: int) -> float:
    """Bytes that one device gets, from the type of the result; n devices."""
    arrays = _ARRAY.findall(result)
    if operation in ("all-gather-start", "collective-permute-start"):
        # The result names all that goes in, all that comes out, and for a permutation two counters.
        arrays = [array for array in arrays if array != ("u32", "")]
        arrays = arrays[len(arrays) // 2 :]
    size = sum(math.prod(map(int, filter(None, dims.split(",")))) * _BITS[dtype] / 8 for dtype, dims in arrays)
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter" and operation.startswith("reduce-scatter"):
        return size * (n - 1)
    return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _group(line: str) -> tuple[int, ...]:
    """The first group of devices that exchange something, numbered as in the mesh; empty: all of them."""
    if pair := _PAIRS.search(line):
        return int(pair[1]), int(pair[2])
    if mesh := _MESH.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        devices = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(math.prod(sizes.values()))
        varying = re.findall(r"'([^']+)'", mesh[4])
        first = tuple(slice(None) if name in varying else 0 for name in sizes)
        return tuple(devices.reshape(list(sizes.values()))[first].reshape(-1).tolist())
    found = _GROUPS.search(line)
    if not found:
        raise ValueError(f"groups of an unknown form: {line.strip()[:200]}")
    if found[1].startswith("{"):
        return tuple(int(x) for x in found[1].strip("{}").split(",") if x)
    shape, *rest = re.findall(r"[\[(]([\d,]+)[\])]", found[1])
    return tuple(_iota(*rest).reshape(_numbers(shape))[0].tolist())


def _iota(shape: str, order: str | None = None) -> np.ndarray:
    """Devices counted through `shape`, its axes then put in `order`: what HLO writes as [4,2]T(1,0)."""
    devices = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def _axes(group: tuple[int, ...], shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The mesh axes that a group spans."""
    places = np.array(np.unravel_index(group, shape))
    return tuple(axis for axis, place in zip(AXES, places) if len(set(place.tolist())) > 1)
