"""Storage that hiccups, for images, shards and jsonl files; shards beyond the limit on open files."""

import errno
import logging
import os
import re
import resource
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_data import Opened, load, same, small_record, write_shard

from vlm3_jax import storage
from vlm3_jax.data import check
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import items


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(storage, "PAUSE_S", 0.01)


@pytest.fixture
def mended():
    """`mended(repair)` calls `repair()` at the first report of a reading that failed; what is reported is listed."""
    log, handlers = logging.getLogger(storage.__name__), []

    def mend(repair):
        class Mending(logging.Handler):
            def emit(self, line):
                lines.append(line.getMessage())
                if len(lines) == 1:
                    repair()

        lines = []
        handlers.append(Mending())
        log.addHandler(handlers[-1])
        return lines

    yield mend
    for handler in handlers:
        log.removeHandler(handler)


def break_file(path) -> None:
    """A socket in the file's place: opening it ends with ENXIO, which may pass."""
    path.unlink(missing_ok=True)
    # Its address has room for 107 bytes, so the folder is named by its number.
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def put_back(path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)


@pytest.fixture
def whole_jsonl(jsonl, tmp_path):
    """The ten images, all of them sound."""
    (tmp_path / "3.png").write_bytes(small_record(3).views[0].image.data)
    return jsonl


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_fails_once_is_read_again(whole_jsonl, settings, tmp_path, mended, workers):
    path, data = tmp_path / "5.png", (tmp_path / "5.png").read_bytes()
    whole = load(Opened(whole_jsonl, settings, 2), settings, 3, workers=0)
    break_file(path)
    lines = mended(lambda: put_back(path, data))
    for one, two in zip(load(Opened(whole_jsonl, settings, 2), settings, 3, workers=workers), whole, strict=True):
        same(one, two)
        assert one.stats["bad"] == 0
    why = f"[Errno {errno.ENXIO}] {os.strerror(errno.ENXIO)}: {str(path)!r}"
    assert lines == [f"data: 5.png: OSError: {why}; trying once more"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_fails_once_is_opened_again(table, shards, settings, tmp_path, mended, workers):
    """Its records stay in their rows: the order of the streams is that of a run without the failure."""
    folder = shutil.copytree(shards, tmp_path / "s")
    table = {"near": {**table["near"], "path": str(folder)}}
    whole = load(Opened(table, settings, 2), settings, 4, workers=0)
    opened, first = Opened(table, settings, 2), sorted(folder.iterdir())[0]
    data = first.read_bytes()
    break_file(first)
    lines = mended(lambda: put_back(first, data))
    for one, two in zip(load(opened, settings, 4, workers=workers), whole, strict=True):
        same(one, two)
        assert one.stats["bad"] == 0
    assert lines
    assert all(line.startswith(f"data: {first}[") for line in lines)
    assert all("open() failed: No such device" in line for line in lines)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_that_are_gone_stop_the_run(table, shards, settings, tmp_path, workers):
    folder = shutil.copytree(shards, tmp_path / "s")
    opened = Opened({"near": {**table["near"], "path": str(folder)}}, settings, 2)
    shutil.rmtree(folder)
    message = r"^20 records in a row failed 2 times each, the last, near/\d+@\d, with OSError: open\(\) failed: No such"
    with pytest.raises(UserError, match=message):
        load(opened, settings, 1, workers=workers)


def test_images_that_are_gone_stop_the_run(whole_jsonl, settings, tmp_path):
    """Lines are read between them where rows are planned, but not between those of a batch of long rows."""
    for number in range(10):
        break_file(tmp_path / f"{number}.png")
    opened = Opened(whole_jsonl, settings, 12)
    with pytest.raises(UserError, match=r"^20 records in a row failed 2 times each, the last, x/\d@\d, with OSError: "):
        load(opened, settings, 1, workers=0)


def test_what_fails_twice_is_set_aside(whole_jsonl, settings, tmp_path, caplog):
    break_file(tmp_path / "5.png")
    quarantine = Quarantine(tmp_path / "q.jsonl", 0.5)
    opened = Opened(whole_jsonl, settings, 2)
    found = load(opened, settings, 4, workers=2, quarantine=quarantine)
    seen = [id for batch in found for row in batch.ids for id in row if id.startswith("x/5@")]
    assert quarantine.bad >= len(seen) > 0
    reason = rf"5\.png: failed 2 times, the last with OSError: \[Errno {errno.ENXIO}\]"
    said = [message for message in caplog.messages if message.endswith("set aside")]
    assert said[0].startswith(f"data: {seen[0]}: OSError: ")
    # Whoever has no workers gets a reason, not a traceback.
    image = opened.components[0].source[5].views[0].image
    with pytest.raises(storage.Unreadable, match=reason):
        image.load()
    report = check.check(opened.components)
    assert [(item.id, item.reason.startswith("5.png: failed 2 times")) for item in report.bad] == [("x/5", True)]
    # The jsonl file itself: its descriptor is gone.
    opened.components[0].source.close()
    with pytest.raises(storage.Unreadable, match=r"x\.jsonl:2: failed 2 times, .*Bad file descriptor"):
        opened.components[0].source[1]
    with pytest.raises(UserError, match="10 of 10 samples"):
        items.HeldOut(opened.components[:1])


def test_a_wrong_path_is_not_tried_again(whole_jsonl, settings, tmp_path, mended):
    """A folder, a file where a folder should be, a name that is too long, links in a circle."""
    text = (tmp_path / "x.jsonl").read_text()
    for old, new in (("1.png", "sub"), ("2.png", "4.png/a.png"), ("3.png", "n" * 300), ("5.png", "loop.png")):
        text = text.replace(f'"{old}"', f'"{new}"')
    (tmp_path / "x.jsonl").write_text(text)
    (tmp_path / "sub").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    lines = mended(lambda: None)
    report = check.check(Opened(whole_jsonl, settings, 2).components)
    assert [(item.id, item.reason.partition(": ")[2]) for item in report.bad] == [
        ("x/1", "cannot read the image (Is a directory)"),
        ("x/2", "cannot read the image (Not a directory)"),
        ("x/3", "cannot read the image (File name too long)"),
        ("x/5", "image 'loop.png' is a loop of symbolic links"),
    ]
    assert not lines


@pytest.fixture
def few_files():
    """(limit on open files, a number of shards above it); more can be opened than now, but not so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * used + 80, hard))
    yield 2 * used + 80, used + 120
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_shards(folder) -> int:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link).startswith(str(folder)) for link in links)


def test_more_shards_than_files_may_be_open(few_files, tmp_path, caplog):
    limit, count = few_files
    for folder, n in (("a", count), ("b", 10)):
        (tmp_path / folder).mkdir()
        for number in range(n):
            write_shard(tmp_path / folder / f"{number:04d}.array_record", [small_record(number % 7)])
    many, few = (make_source(name, {"path": str(tmp_path / name)}) for name in "ab")
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(count), 3)).tolist()
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda i: (many[i].id, few[i % 10].id), order))
    assert ids == [(f"r{i % 7}", f"r{i % 10 % 7}") for i in order]
    most = limit // 2
    # Sources of other tests may still be there and have their share.
    assert most // 2 < open_shards(tmp_path / "a") < most
    assert 1 <= open_shards(tmp_path / "b") < 10
    said = rf"data: only \d+ of the {count} shards in {tmp_path / 'a'} stay open; "
    assert re.match(said, caplog.messages[0])
    many.close()
    assert open_shards(tmp_path / "a") == 0
    assert many[5].id == "r5"


def test_shards_stay_open(shards):
    source = make_source("a", {"path": str(shards)})
    before = open_shards(shards)
    for _ in range(2):
        assert [source[i].id for i in (0, 59, 1)] == ["r0", "r59", "r1"]
    assert open_shards(shards) == before + 2
    del source
    assert open_shards(shards) == before


def test_a_stale_file_handle_is_opened_anew(shards, mended):
    source = make_source("a", {"path": str(shards)})
    assert source[0].id == "r0"
    first = sorted(shards.iterdir())[0]
    numbers = [int(n) for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{n}") == str(first)]
    other = os.open(shards, os.O_RDONLY)
    for number in numbers:
        os.dup2(other, number)
    os.close(other)
    lines = mended(lambda: None)
    assert source[7].id == "r7"
    assert len(lines) == 1
    assert lines[0].startswith(f"data: {first}[7]: OSError: pread() failed: ")


def test_a_full_table_of_open_files_is_no_bad_data(shards, mended):
    """A reader made while it was full would fail for ever."""
    source = make_source("a", {"path": str(shards)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    lines = mended(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        assert source[0].id == "r0"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(lines) == 1
    assert "Too many open files" in lines[0]
