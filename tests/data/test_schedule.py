import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from small_data import Opened, scheduler_of

from vlm3_jax.data import packing
from vlm3_jax.data.samples import Bad, PassedOver
from vlm3_jax.data.schedule import MAX_FRUITLESS, Listed, Scheduler
from vlm3_jax.errors import UserError

BUDGET = packing.RowBudget(100, 60, 50)


def stand_in(index):
    """A sample of index-dependent size; every 11th record is broken, every 13th is not used."""
    if index % 11 == 5:
        return Bad(f"s/{index}", "s", "file", f"record {index}: broken")
    if index % 13 == 7:
        return PassedOver("nothing to ask")
    size = 10 + (index * 37) % 50
    return SimpleNamespace(id=index, tokens=range(size), n_patches=size // 2, target_tokens=range(size // 5))


def scheduler(stride, sample=stand_in):
    return Scheduler(sample, lambda row: packing.fits(row, BUDGET), stride)


def run(state, stride, batches, sample=stand_in):
    own, scheduled = scheduler(stride, sample), []
    for _ in range(batches):
        scheduled.append(own.batch(state))
        state = scheduled[-1].cursors
    return scheduled


def test_streams_fill_rows_until_the_next_sample_does_not_fit():
    scheduled = run(np.arange(3), 3, 20)
    for stream in range(3):
        rows = [batch.rows[stream] for batch in scheduled]
        taken = [sample.id for row in rows for sample in row]
        usable = [i for i in range(stream, taken[-1] + 1, 3) if i % 11 != 5 and i % 13 != 7]
        assert taken == usable
        for row, after in itertools.pairwise(rows):
            assert packing.fits(row, BUDGET)
            assert not packing.fits([*row, after[0]], BUDGET)
    assert scheduled[0].n_samples == sum(len(row) for row in scheduled[0].rows)


def test_bad_records_are_reported_once_and_skipped():
    scheduled = run(np.arange(3), 3, 20)
    end = scheduled[-1].cursors
    passed = [i for stream in range(3) for i in range(stream, end[stream], 3)]
    bad = sorted(int(item.id[2:]) for batch in scheduled for item in batch.bad)
    assert bad == sorted(i for i in passed if i % 11 == 5)
    assert sum(batch.passed_over for batch in scheduled) == sum(i % 13 == 7 and i % 11 != 5 for i in passed)
    assert scheduled[0].bad[0].reason == f"record {scheduled[0].bad[0].id[2:]}: broken"


@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 2], [1, 3]], [[0], [1], [2], [3]]])
def test_hosts_plan_the_rows_of_one_global_batch(shares):
    whole = run(np.arange(4), 4, 6)
    for share in shares:
        for batch, scheduled in zip(whole, run(np.array(share), 4, 6), strict=True):
            assert [[s.id for s in row] for row in scheduled.rows] == [[s.id for s in batch.rows[r]] for r in share]


def test_any_state_continues_identically():
    whole = run(np.arange(4), 4, 8)
    for cut in range(7):
        rest = run(whole[cut].cursors, 4, 7 - cut)
        assert [[[s.id for s in row] for row in b.rows] for b in rest] == [
            [[s.id for s in row] for row in b.rows] for b in whole[cut + 1 :]
        ]
        np.testing.assert_array_equal(whole[-1].cursors, rest[-1].cursors)


def test_broken_data_do_not_loop_for_ever():
    line = f"^{MAX_FRUITLESS} records in a row without a usable one; the last: "
    with pytest.raises(UserError, match=line + "record 999: torn"):
        scheduler(1, lambda index: Bad("s", "s", "file", f"record {index}: torn")).batch(np.array([0]))
    with pytest.raises(UserError, match=line + "nothing to ask about 999"):
        scheduler(1, lambda index: PassedOver(f"nothing to ask about {index}")).batch(np.array([0]))


def test_listed_rows_are_those_of_the_list_and_end():
    batches = [[[0, 1], [2]], [[5, 7, 8], []]]
    own, cursors, taken = Listed(stand_in, batches), np.zeros(1, np.int64), []
    while (batch := own.batch(cursors)) is not None:
        cursors = batch.cursors
        taken.append([[sample.id for sample in row] for row in batch.rows])
    assert taken == [[[0, 1], [2]], [[8], []]]
    assert own.batch(np.array([1])).bad == [stand_in(5)]
    assert own.batch(np.array([1])).passed_over == 1
    assert own.batch(np.array([0])).n_samples == 3


def test_real_mixture_of_two_sources(samples, shards, settings):
    path = samples / "ibims1" / "ibims1.jsonl"
    table = {
        "ibims": {
            "kind": "depthlm",
            "path": str(path),
            "depth_kind": "z",
            "protocol": "short",
            "resize": "focal:120",
        },
        "small": {"path": str(shards), "protocol": "short", "resize": "focal:100", "questions": 4, "weight": 3.0},
        "off": {"path": "nowhere", "weight": 0.0},
    }
    settings = dataclasses.replace(settings, budget=packing.RowBudget(768, 512, 256))
    opened = Opened(table, settings, 3)
    own = scheduler_of(opened, settings)
    state, taken = opened.state.cursors, []
    for _ in range(6):
        scheduled = own.batch(state)
        state = scheduled.cursors
        taken += [sample for row in scheduled.rows for sample in row]
        assert not scheduled.bad
    assert {sample.component for sample in taken} == {0, 1}
    assert len({sample.id for sample in taken}) == len(taken)
    assert 0.1 < np.mean([sample.component == 0 for sample in taken]) < 0.4
