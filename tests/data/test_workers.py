import json
import os
import threading
import time

import pytest
from small_data import Opened, Troubled, load, loader_of, same, same_without

from vlm3_jax.data import workers as module
from vlm3_jax.data.loader import Loader
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.schedule import Scheduler
from vlm3_jax.errors import UserError


class Killed(BaseException):
    """Nothing that a thread of ours catches."""


def troubled(opened, trouble):
    """The mixture with trouble in its first component, "near"."""
    opened.components[0].source = Troubled(opened.components[0].source, trouble)
    return opened


def early(whole) -> list[str]:
    """Ids of the first samples of "near"."""
    return [id for batch in whole for row in batch.ids for id in row if id.startswith("near/")]


def record(id: str) -> int:
    """The number of a sample's record."""
    return int(id.split("/")[1].split("@")[0])


# What hangs never answers; what is sound must answer within this on a busy machine too.
HANGS_S = 4.0


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Those of the loader end, however it goes."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 300
    while left := [t.name for t in set(threading.enumerate()) - before]:
        assert time.monotonic() < end, left
        time.sleep(0.02)


@pytest.mark.parametrize(("workers", "error"), [(0, OSError("lost")), (2, MemoryError()), (2, SystemExit("no"))])
def test_a_failure_that_passes_changes_nothing(table, opened, settings, caplog, workers, error):
    whole = load(opened, settings, 3, workers=0)
    victim, failures = early(whole)[2], []

    def trouble(index):
        if index == record(victim) and not failures:
            failures.append(index)
            raise error

    for one, two in zip(load(troubled(opened, trouble), settings, 3, workers=workers), whole, strict=True):
        same(one, two)
        assert one.stats["bad"] == 0
    name = type(error).__name__ + (f": {error}" if str(error) else "")
    assert lines(caplog) == [f"data: {victim}: {name}; trying once more"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_replaced(opened, settings, caplog):
    whole = load(opened, settings, 4, workers=0)
    victims, killed = early(whole)[:3], []

    def trouble(index):
        if index in map(record, victims) and index not in killed:
            killed.append(index)
            raise Killed

    # More threads die than there are; none of it waits for the timeout.
    start = time.monotonic()
    found = load(troubled(opened, trouble), settings, 4, workers=2, worker_timeout_s=3600.0)
    assert time.monotonic() - start < 1800
    for one, two in zip(found, whole, strict=True):
        same(one, two)
    expected = {f"data: {victim}: TimeoutError: its thread died; trying once more" for victim in victims}
    assert set(lines(caplog)) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_record_that_always_fails_is_set_aside(opened, settings, caplog, tmp_path, workers):
    whole = load(opened, settings, 6, workers=0)
    victim = early(whole)[2]

    def trouble(index):
        if index == record(victim):
            raise ValueError("a bug")

    quarantine = Quarantine(tmp_path / "q.jsonl", 0.5)
    found = load(troubled(opened, trouble), settings, 6, workers=workers, prefetch=1, quarantine=quarantine)
    same_without(found, whole, lambda id: id.startswith(f"near/{record(victim)}@"))
    rows = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert quarantine.bad == len(rows) == sum(batch.stats["bad"] for batch in found) > 0
    assert rows[0]["id"] == victim
    assert rows[0]["reason"] == "failed 2 times, the last with ValueError: a bug"
    assert lines(caplog)[:2] == [
        f"data: {victim}: ValueError: a bug; trying once more",
        f"data: {victim}: ValueError: a bug; set aside",
    ]


def test_a_record_that_hangs_is_set_aside(opened, settings, caplog):
    whole = load(opened, settings, 3, workers=0)
    victim, released = early(whole)[2], threading.Event()

    def trouble(index):
        if index == record(victim):
            released.wait(3600)

    kwargs = {"workers": 2, "prefetch": 1, "worker_timeout_s": HANGS_S, "quarantine": Quarantine(None, 0.5)}
    found = load(troubled(opened, trouble), settings, 3, **kwargs)
    released.set()
    same_without(found, whole, lambda id: id.startswith(f"near/{record(victim)}@"))
    assert sum(batch.stats["bad"] for batch in found) == 1
    assert f"data: {victim}: TimeoutError: no answer within 4 s; set aside" in lines(caplog)


def test_an_image_that_hangs_is_masked(jsonl, settings, caplog, tmp_path, monkeypatch):
    """A pipe that nobody writes to, as a network file system that never answers."""
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.png").write_bytes((tmp_path / "4.png").read_bytes())
    whole = load(Opened(jsonl, settings, 2), settings, 2, workers=0)
    (tmp_path / "3.png").unlink()
    os.mkfifo(tmp_path / "3.png")
    kwargs = {"workers": 2, "prefetch": 1, "worker_timeout_s": HANGS_S, "quarantine": Quarantine(tmp_path / "q", 0.5)}
    found = load(Opened(jsonl, settings, 2), settings, 2, **kwargs)
    while "vlm3-data" in [thread.name for thread in threading.enumerate()]:
        try:
            os.close(os.open(tmp_path / "3.png", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            time.sleep(0.02)
    assert [batch.ids for batch in found] == [batch.ids for batch in whole]
    masked = [id for batch in whole for row in batch.ids for id in row if id.startswith("x/3@")]
    assert masked
    rows = [json.loads(line) for line in (tmp_path / "q").read_text().splitlines()]
    assert [(row["id"], row["file"]) for row in rows] == [(id, "3.png") for id in masked]
    assert rows[0]["reason"] == "failed 2 times, the last with TimeoutError: no answer within 4 s"
    for one, two in zip(found, whole, strict=True):
        lost = one.arrays["target_weight"] != two.arrays["target_weight"]
        assert lost.any() == any(id.startswith("x/3@") for row in one.ids for id in row)
    assert f"data: {masked[0]}: TimeoutError: no answer within 4 s; set aside" in lines(caplog)


@pytest.mark.parametrize("workers", [0, 2])
def test_storage_that_is_gone_stops_the_run(opened, settings, workers):
    def gone(index):
        raise OSError("stale file handle")

    for component in opened.components:
        component.source = Troubled(component.source, gone)
    message = (
        r"^20 records in a row failed 2 times each, the last, (near|far)/\d+@\d+, with OSError: stale file handle: "
    )
    with pytest.raises(UserError, match=message):
        load(opened, settings, 1, workers=workers)


def test_an_error_of_the_user_is_raised_as_it_is(opened, settings, caplog):
    def refuse(index):
        raise UserError("x.jsonl:3: image leaves")

    with pytest.raises(UserError, match=r"^x\.jsonl:3: image leaves$"):
        load(troubled(opened, refuse), settings, 1, workers=2)
    assert not lines(caplog)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), Killed("a bug")])
def test_trouble_in_the_planning_thread_is_raised(opened, settings, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Scheduler, "_take", fail)
    with pytest.raises(RuntimeError, match=f"^the data loader failed: {type(error).__name__}: a bug$"):
        load(opened, settings, 1, workers=2)


def test_a_planning_thread_that_is_gone_is_noticed(opened, settings, monkeypatch):
    monkeypatch.setattr(Loader, "_produce", lambda self: None)
    with pytest.raises(RuntimeError, match="the scheduling thread has ended"):
        load(opened, settings, 1, workers=2)


def test_closing_does_not_wait_for_what_hangs(opened, settings, monkeypatch):
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    released, reached = threading.Event(), threading.Event()

    def hang(index):
        reached.set()
        released.wait(3600)

    loader = loader_of(troubled(opened, hang), settings, workers=2)
    closer = threading.Thread(target=lambda: (reached.wait(600), loader.close()))
    closer.start()
    start = time.monotonic()
    # The training thread is waiting for a batch meanwhile.
    with pytest.raises(RuntimeError, match=r"the data loader failed|is closed"):
        next(loader)
    closer.join(600)
    assert not closer.is_alive()
    assert time.monotonic() - start < 1800
    released.set()


def test_a_closed_loader_says_so(opened, settings):
    loader = loader_of(opened, settings, workers=2)
    next(loader)
    loader.close()
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_name_that_cannot_be_made_stops_nothing(workers, caplog):
    """A thread that died of it would leave its call, and whoever waits for it, waiting for ever."""
    stop = threading.Event()
    pool, failures = module.Workers(workers, 5.0, stop), []

    def read(item):
        if not failures:
            failures.append(item)
            raise OSError("lost")
        return item

    def name():
        raise AttributeError("no such entry")

    # Set by hand if it hangs, so that the test ends.
    timer = threading.Timer(20, stop.set)
    timer.start()
    try:
        assert pool.submit(read, 7, name)() == 7
    finally:
        timer.cancel()
        pool.close()
    assert lines(caplog) == ["data: 7: OSError: lost; trying once more"]
