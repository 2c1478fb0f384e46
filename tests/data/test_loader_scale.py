"""The order of the data over hosts, workers, interruptions and damage; memory over many samples."""

import collections
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest
from small_data import Opened, blank_depthlm, by_stream, load, loader_of, same_without, small_record

from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.schedule import Schedule
from vlm3_jax.errors import BadRecord

STREAMS = 4


class Hosts:
    """A run as several hosts make it, each a loader for its streams: `next` gives the global batch."""

    def __init__(self, table, settings, hosts, workers, saved=None, prefetch=2, max_bad_fraction=0.01):
        self.opened = Opened(table, settings, STREAMS, saved=saved, max_bad_fraction=max_bad_fraction)
        phases, cursors = self.opened.state.phases, self.opened.state.cursors
        # Whichever streams a host has: here the first takes every n-th.
        self._streams = [np.arange(host, STREAMS, hosts) for host in range(hosts)]
        self.loaders = [
            loader_of(
                self.opened, settings, Schedule(cursors[mine], phases),
                workers=workers, prefetch=prefetch, quarantine=Quarantine(None, max_bad_fraction),
            )
            for mine in self._streams
        ]  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for loader in self.loaders:
            loader.close()

    def next(self):
        """(ids by row, arrays of all rows, the state behind the batch as it is saved and read again)."""
        parts = [next(loader) for loader in self.loaders]
        order = np.argsort(np.concatenate(self._streams))
        rows = [row for part in parts for row in part.ids]
        arrays = {name: np.concatenate([part.arrays[name] for part in parts])[order] for name in parts[0].arrays}
        cursors = np.concatenate([part.state.cursors for part in parts])[order]
        state = Schedule(cursors, parts[0].state.phases)
        tree = json.loads(json.dumps(state.to_tree(), default=np.ndarray.tolist))
        return [rows[i] for i in order], arrays, Schedule.from_tree(tree)


def run(table, settings, batches, hosts=1, workers=0, saved=None, **kwargs):
    with Hosts(table, settings, hosts, workers, saved, **kwargs) as these:
        return [these.next() for _ in range(batches)]


def same(one, two, but=()):
    assert one[0] == two[0]
    np.testing.assert_array_equal(one[2].cursors, two[2].cursors)
    for name in one[1].keys() - set(but):
        np.testing.assert_array_equal(one[1][name], two[1][name], err_msg=name)


@pytest.fixture(scope="module")
def whole(table, settings):
    """What one host without any threads loads."""
    return run(table, settings, 10)


@pytest.mark.parametrize(("hosts", "workers"), [*itertools.product((1, 2, 4), (0, 2, 4))])
def test_all_hosts_and_workers_see_one_global_batch(table, settings, whole, hosts, workers):
    for one, two in zip(run(table, settings, 3, hosts, workers), whole, strict=False):
        same(one, two)


def test_hosts_and_workers_may_change_in_mid_run(table, settings, whole):
    """Batches were prepared ahead at every stop, and are prepared again."""
    found, saved = [], None
    for hosts, workers, batches in [(1, 2, 2), (4, 4, 1), (2, 0, 3), (1, 0, 1), (2, 4, 3)]:
        found += run(table, settings, batches, hosts, workers, saved, prefetch=3)
        saved = found[-1][2]
    for one, two in zip(found, whole, strict=True):
        same(one, two)


def test_no_sample_is_lost_or_repeated(table, settings):
    """Over several passes of both components, with a stop after every few batches."""
    table = {"near": {**table["near"], "limit": 23}, "far": {**table["far"], "limit": 7}}
    seen, saved = collections.Counter(), None
    for stop in range(8):
        part = run(table, settings, 2, hosts=(1, 2, 4)[stop % 3], workers=(0, 2)[stop % 2], saved=saved)
        seen.update(id for rows, _, _ in part for row in rows for id in row)
        saved = part[-1][2]
    assert set(seen.values()) == {1}
    # All that lies before the slowest stream.
    mixture = Opened(table, settings, STREAMS).mixture
    assert {mixture.id(mixture.draw(i)) for i in range(saved.cursors.min())} <= set(seen)
    # A pass is over once every record was seen.
    for name, records in (("near", 23), ("far", 7)):
        for epoch in range(2):
            assert {f"{name}/{record}@{epoch}" for record in range(records)} <= set(seen)


@pytest.mark.parametrize("damage", ["truncated", "missing", "another size", "not an image"])
def test_a_damaged_image_changes_no_ids(jsonl, settings, tmp_path, damage):
    """Between two runs, on another number of hosts and workers: batches are the same but for pixels and weights."""
    good = small_record(3).views[0].image.data
    (tmp_path / "3.png").write_bytes(good)
    whole = run(jsonl, settings, 5)
    first = run(jsonl, settings, 2, hosts=2, workers=2)
    if damage == "missing":
        (tmp_path / "3.png").unlink()
    else:
        data = {"truncated": good[:900], "not an image": b"?" * 900, "another size": small_record(3, (64, 64))}[damage]
        (tmp_path / "3.png").write_bytes(data if isinstance(data, bytes) else data.views[0].image.data)
    rest = run(jsonl, settings, 3, hosts=4, workers=4, saved=first[-1][2], max_bad_fraction=0.5)
    lost = 0
    for one, two in zip(first + rest, whole, strict=True):
        same(one, two, but=("patches", "target_weight"))
        lost += (one[1]["target_weight"] != two[1]["target_weight"]).any()
    assert lost


def follows(parts, whole, lost):
    """Asserts that the streams go on as in `whole` but for the ids that `lost` holds."""
    named = [[collections.namedtuple("Batch", "ids")(rows) for rows, _, _ in side] for side in (parts, whole)]
    assert any(lost(id) for ids in by_stream(named[1]) for id in ids)
    same_without(*named, lost)


def test_a_damaged_record_moves_no_other(table, settings, shards, tmp_path):
    """A byte of a shard flips between two runs: that record is passed over, the others keep their order."""
    folder = shutil.copytree(shards, tmp_path / "shards")
    table = {"near": {**table["near"], "path": str(folder)}}
    whole = run(table, settings, 8)
    first = run(table, settings, 2, hosts=2, workers=2)
    shard = sorted(folder.iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[20_000] ^= 0xFF
    shard.write_bytes(data)
    source = Opened(table, settings, STREAMS).components[0].source
    broken = [index for index in range(len(source)) if is_broken(source, index)]
    assert len(broken) == 1
    kwargs = {"saved": first[-1][2], "max_bad_fraction": 0.5}
    rest = [run(table, settings, 6, hosts, workers, **kwargs) for hosts, workers in ((1, 0), (4, 2))]
    for one, two in zip(*rest, strict=True):
        same(one, two)
    done = {id for rows, _, _ in first for row in rows for id in row}
    follows(first + rest[0], whole, lambda id: id.startswith(f"near/{broken[0]}@") and id not in done)


def is_broken(source, index):
    try:
        source[index]
    except BadRecord:
        return True
    return False


def test_a_damaged_line_moves_no_other(jsonl, settings, tmp_path):
    """The run goes on: the file has as many lines, and the others their numbers."""
    (tmp_path / "3.png").write_bytes(small_record(3).views[0].image.data)
    whole = run(jsonl, settings, 6)
    first = run(jsonl, settings, 1)
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    (tmp_path / "x.jsonl").write_text("\n".join([*lines[:6], lines[6][:50], *lines[7:]]))
    rest = run(jsonl, settings, 5, 2, 2, saved=first[-1][2], max_bad_fraction=0.5)
    done = {id for rows, _, _ in first for row in rows for id in row}
    follows(first + rest, whole, lambda id: id.startswith("x/6@") and id not in done)


def anonymous_mb() -> float:
    """Anonymous memory of this process; files that are mapped count elsewhere."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@pytest.mark.slow
@pytest.mark.parametrize(("warm", "total"), [(800, 2200), (2000, 20_000)])
def test_memory_stays_flat(settings, tmp_path, warm, total):
    """So many samples through threads; in the short version 2 kB may be kept of each."""
    blank_depthlm(tmp_path / "grey.jsonl", [(64, 48), (48, 64), (80, 48)], 50.0, 500)
    entry = {"kind": "depthlm", "path": str(tmp_path / "grey.jsonl"), "depth_kind": "z", "protocol": "short"}
    opened = Opened({"grey": {**entry, "resize": "focal:50", "questions": 2}}, settings, 8)
    seen, start = 0, None
    with loader_of(opened, settings, workers=2) as loader:
        while seen < total:
            seen += next(loader).samples
            if start is None and seen >= warm:
                start = anonymous_mb()
    assert anonymous_mb() - start < 3


def test_prefetching_does_not_change_where_a_run_goes_on(opened, settings, whole):
    for prefetch in (1, 5):
        for one, (rows, _, state) in zip(load(opened, settings, 4, workers=2, prefetch=prefetch), whole, strict=False):
            assert one.ids == rows
            np.testing.assert_array_equal(one.state.cursors, state.cursors)
