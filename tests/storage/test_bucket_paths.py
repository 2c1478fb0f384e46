"""A path in a bucket behaves as a local one does, against real servers of both kinds."""

import itertools
import pathlib
import threading

import pytest

from vlm3_jax import files, storage
from vlm3_jax.errors import UserError
from vlm3_jax.storage import BucketPath, folders, paths
from vlm3_jax.storage.buckets import Missing, Refused


def test_names():
    found = storage.path("gs://lab/a//./b/run.tar.gz/")
    assert str(found) == "gs://lab/a/b/run.tar.gz"
    local = pathlib.PurePosixPath("/lab/a/b/run.tar.gz")
    for name in ("name", "suffix", "stem"):
        assert getattr(found, name) == getattr(local, name)
    assert [str(p) for p in found.parents] == ["gs://lab/a/b", "gs://lab/a", "gs://lab"]
    assert (found.parent.name, found.parents[-1].name) == ("b", "lab")
    assert found.with_name("x") == found.parent / "x" == storage.path("gs://lab/a/b/x")
    assert found.with_suffix(".zip") == found.parent / "run.tar.zip"
    assert found.relative_to(storage.path("gs://lab/a")) == "b/run.tar.gz"
    assert found.is_relative_to(found)
    assert not found.is_relative_to(storage.path("s3://lab/a"))
    with pytest.raises(ValueError, match="is not in"):
        found.relative_to(storage.path("gs://lab/ab"))
    assert sorted([storage.path("gs://lab/b"), storage.path("gs://lab/a")])[0].name == "a"
    assert len({found, storage.path(str(found))}) == 1
    # Nobody takes it for a local path by mistake.
    with pytest.raises(TypeError):
        pathlib.Path(found)


@pytest.mark.parametrize("name", ["..", "a/../../b", "a\0b", "a\nb"])
def test_names_stay_inside(name):
    folder = storage.path("gs://lab/folder")
    with pytest.raises(UserError, match="leads out of its folder"):
        folder / name
    with pytest.raises(UserError, match="leads out of its folder"):
        storage.path(f"gs://lab/{name}")


def test_other_schemes_and_odd_urls_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("https://a.b/c", "file:///a", "hf://a/b", "az://a/b"):
        with pytest.raises(UserError, match=rf"^out: {text}: give a local path or one that begins with gs://, s3://$"):
            storage.path(text, "out")
    for text in ("gs:/lab/run", "gs://", "gs:///x", "s3://La b/x", "gs://-/x"):
        with pytest.raises(UserError, match=rf"^out: {text}: write (gs|s3)://BUCKET/NAME$"):
            storage.path(text, "out")
    with pytest.raises(UserError, match=r"^config: gs://lab/x: only a local path will do here"):
        storage.local_path("gs://lab/x", "config")
    for text in ("a/b", "/a:b/c", "tiny:demo", "C:/", "owner/name", "a b.jpg"):
        assert storage.path(text) == storage.local_path(text) == pathlib.Path(text)
    assert not list(tmp_path.iterdir())


def test_reads_and_writes(place, tmp_path):
    one = place / "a" / "one.txt"
    assert not one.exists()
    assert not place.is_dir()
    with pytest.raises(FileNotFoundError):
        one.read_bytes()
    one.write_text("grüße\n")
    (place / "a" / "two.bin").write_bytes(bytes(range(256)) * 100)
    assert one.read_text() == "grüße\n"
    assert one.is_file()
    assert not one.is_dir()
    assert place.is_dir()
    assert (place / "a").is_dir()
    assert not (place / "a").is_file()
    assert [p.name for p in (place / "a").iterdir()] == ["one.txt", "two.bin"]
    assert [p.name for p in place.iterdir()] == ["a"]
    assert list(place.glob("a/*.txt")) == [one]
    assert list(place.glob("b*")) == []
    assert [p.name for p in place.rglob("*")] == ["one.txt", "two.bin"]
    two = place / "a" / "two.bin"
    assert two.stat().st_size == 25_600
    assert two.read_range(254, 258) == bytes([254, 255, 0, 1])
    assert two.read_end(100_000) == (two.read_bytes(), 25_600)
    assert two.read_end(3) == (bytes([253, 254, 255]), 25_600)
    with one.open() as file:
        assert list(file) == ["grüße\n"]
    with two.open("rb") as file:
        file.seek(-2, 2)
        assert file.read() == bytes([254, 255])
    with (place / "three").open("w") as file:
        file.write("3")
    assert (place / "three").read_text() == "3"
    with pytest.raises(TypeError), (place / "four").open("wb") as file:
        file.write("no bytes")
    assert not (place / "four").exists()
    with pytest.raises(UserError, match="25,600 bytes, at most 100 are read"):
        two.read_bytes(limit=100)
    two.download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == two.read_bytes()
    assert two.rename(place / "b" / "moved").stat().st_size == 25_600
    assert not two.exists()
    (place / "a").rename(place / "c")
    assert [p.relative_to(place) for p, _ in place.walk()] == ["b/moved", "c/one.txt", "three"]
    (place / "three").unlink()
    with pytest.raises(Missing):
        (place / "three").unlink()
    (place / "three").unlink(missing_ok=True)
    place.rmtree()
    assert not place.exists()
    with pytest.raises(Missing):
        list(place.iterdir())


def test_large_objects_go_in_parts(place, tmp_path, monkeypatch):
    from vlm3_jax.storage import buckets

    monkeypatch.setattr(buckets, "PART_BYTES", 5 * 2**20)
    data = bytes(range(256)) * (12 * 2**20 // 256) + b"end"
    (tmp_path / "x").write_bytes(data)
    (place / "x").upload(tmp_path / "x")
    assert (place / "x").stat().st_size == len(data)
    (place / "x").download(tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == data
    assert not list(tmp_path.glob("*.part"))


def test_made_only_if_it_is_not_there(place):
    lock = place / "lock"
    assert lock.versioned() is None
    version = lock.create(b"one")
    assert version
    assert lock.create(b"two") is None
    assert lock.versioned() == (b"one", version)
    newer = lock.update(b"three", version)
    assert newer
    assert newer != version
    assert lock.update(b"four", version) is None
    assert lock.read_bytes() == b"three"
    # Of many at the same time one succeeds.
    won, start = [], threading.Barrier(8)

    def create(number):
        start.wait()
        if (place / "race").create(str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (place / "race").read_bytes() == str(*won).encode()


def test_json_files(place):
    files.write_text(place / "x.json", '{"a": 1}')
    assert files.read_json(place / "x.json") == {"a": 1}
    assert files.Fields.read(str(place / "x.json")).integer("a") == 1
    with pytest.raises(UserError, match=r"no\.json: no such file"):
        files.read_json(place / "no.json")
    (place / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json: cannot be read as JSON"):
        files.read_json(place / "bad.json")


def test_a_missing_bucket_is_told(place):
    there = BucketPath(place.scheme, "none-such", "x")
    for call in (
        there.is_dir,
        lambda: list(there.iterdir()),
        lambda: there.write_text("x"),
        lambda: there.create(b"x"),
    ):
        with pytest.raises(Refused, match=rf"^{place.scheme}://none-such: no such bucket; make it, or mend the name$"):
            call()


def test_fetched_once(place, monkeypatch):
    (place / "m" / "config.json").write_text("{}")
    (place / "m" / "model.safetensors").write_bytes(b"w" * 1000)
    (place / "m" / "deeper" / "x").write_text("x")
    small = folders.fetched(place / "m", lambda name: name.endswith(".json"))
    assert [p.name for p in small.iterdir()] == ["config.json"]
    whole = folders.fetched(place / "m")
    assert sorted(p.name for p in whole.iterdir()) == ["config.json", "model.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(paths.BucketPath, "download", None)
        assert folders.fetched(place / "m") == whole
    (place / "m" / "config.json").write_text('{"new": 1}')
    assert folders.fetched(place / "m") != whole
    assert folders.fetched_file(place / "m" / "config.json").read_text() == '{"new": 1}'
    with pytest.raises(UserError, match="no such folder, or none of its files"):
        folders.fetched(place / "no")


def test_a_folder_is_complete_when_its_last_file_is_there(place, tmp_path, monkeypatch):
    for name in ("config.json", "a/one", "two"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(name)
    (place / "m" / "old").write_text("old")
    (place / "m" / "config.json").write_text("old")
    upload, order, lock = paths.BucketPath.upload, [], threading.Lock()

    def noted(path, local):
        with lock:
            order.append((path.name, (place / "m" / "config.json").exists()))
        upload(path, local)

    monkeypatch.setattr(paths.BucketPath, "upload", noted)
    folders.put_folder(tmp_path / "f", place / "m", "config.json")
    assert order[-1] == ("config.json", False)
    assert not any(complete for _, complete in order)
    assert [p.relative_to(place / "m") for p, _ in (place / "m").walk()] == ["a/one", "config.json", "two"]


def test_work_is_put_up(place):
    (place / "q.jsonl").write_text("1\n")
    work = folders.Workspace(place)
    with work.published("q.jsonl", "no"):
        with open(work.folder / "q.jsonl", "a") as file:
            file.write("2\n")
        (work.folder / "t").mkdir()
        (work.folder / "t" / "events").write_text("e")
        (work.folder / "x.part").write_text("half")
        assert work.publish() is None
        assert (place / "q.jsonl").read_text() == "1\n2\n"
        with open(work.folder / "q.jsonl", "a") as file:
            file.write("3\n")
    assert (place / "q.jsonl").read_text() == "1\n2\n3\n"
    assert [p.relative_to(place) for p, _ in place.walk()] == ["q.jsonl", "t/events"]
    assert not work.folder.exists()


def test_an_empty_folder_name_lists_the_bucket(place):
    (place / "x").write_text("x")
    bucket = BucketPath(place.scheme, place.bucket)
    assert place in list(itertools.islice(bucket.iterdir(), 1000))
