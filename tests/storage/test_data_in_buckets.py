"""Data sets in buckets give the records, and the batches, of the same files on the disk."""

import json
import struct

import numpy as np
import pytest
import servers
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from tests.support import blocks, pair_record, write_depthlm, write_records
from vlm3_jax import records, synth
from vlm3_jax.data.sources import make_source
from vlm3_jax.data.sources.ranged_shard import RangedShard
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.processor.photo import open_photo
from vlm3_jax.storage import Unreadable, buckets, folders


def upload(local, place):
    folders.put_folder(local, place, "")
    return place


def same_records(one, two) -> None:
    assert len(one) == len(two)
    for index in range(len(one)):
        first, second = one[index], two[index]
        assert first.id == second.id
        for a, b in zip(first.views, second.views, strict=True):
            np.testing.assert_array_equal(a.image.load(), b.image.load())
        for a, b in zip(first.depth, second.depth, strict=True):
            np.testing.assert_array_equal(a.depth_m, b.depth_m)


def test_records(place, tmp_path):
    local = write_records(tmp_path / "data")
    far = upload(local, place / "data")
    (far / "README.txt").write_text("no shard")
    source = make_source("local", {"path": str(local)})
    for path in (far, far / "pairs.array_record", far / "*.array_record"):
        same_records(make_source("far", {"path": str(path), "task": "depth"}), source)
    with pytest.raises(UserError, match=rf"^far: no ArrayRecord shards .* at {place}/none"):
        make_source("far", {"path": f"{place}/none"})


@pytest.mark.parametrize(
    "options", ["group_size:1", "group_size:5", "group_size:1,uncompressed", "group_size:3,zstd:9"]
)
@pytest.mark.parametrize("sizes", [(0, 1, 70_000, 3), (65_500,) * 12, (200_000, 10, 131_072), ()])
def test_every_layout_is_read_as_array_record_reads_it(gs, tmp_path, options, sizes):
    """Records shorter and longer than a block, over its borders, compressible or not; the reference is their reader."""
    rng, path = np.random.default_rng(len(sizes)), tmp_path / "x.array_record"
    writer = ArrayRecordWriter(str(path), options)
    for number, size in enumerate(sizes):
        writer.write(rng.bytes(size) if number % 2 else bytes(size))
    writer.close()
    reader = ArrayRecordReader(str(path))
    (gs / "x").upload(path)
    shard = RangedShard(gs / "x")
    assert shard.num_records() == reader.num_records() == len(sizes)
    for position in range(len(sizes)):
        assert shard.read([position]) == reader.read([position])


def test_a_long_index_is_fetched_apart(gs, tmp_path, monkeypatch):
    path = tmp_path / "x.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for number in range(40_000):
        writer.write(str(number).encode())
    writer.close()
    (gs / "x").upload(path)
    shard = RangedShard(gs / "x")
    assert shard.num_records() == 40_000
    assert shard.read([39_999, 7]) == [b"39999", b"7"]


def test_brotli_is_refused_by_name(gs, tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "x"), "group_size:1,brotli:5")
    writer.write(b"x" * 100)
    writer.close()
    (gs / "x").upload(tmp_path / "x")
    with pytest.raises(UserError, match=rf"^{gs}/x: not a readable ArrayRecord file \(compressed by method 'b'; write"):
        make_source("far", {"path": str(gs / "x")})


def test_damaged_shards(gs, tmp_path):
    data = (write_records(tmp_path / "data") / "pairs.array_record").read_bytes()
    cases = {
        "empty": b"",
        "short": data[:1000],
        "cut": data[:-100],
        "half": data[: len(data) // 2 // 65536 * 65536],
        "no": b"no shard" * 20_000,
        "magic": data[:-65536] + data[-65536:].replace(struct.pack("<B", 0xDE), b"\0"),
    }
    for name, content in cases.items():
        (gs / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^{gs}/{name}: not a readable ArrayRecord file"):
            make_source("far", {"path": str(gs / name)})
    # Every byte of the index and of a record may be another one: a reason, or other bytes, but nothing else.
    rng, (gs_path, size) = np.random.default_rng(0), (gs / "flip", len(data))
    for place in [*rng.integers(size - 2 * 65536, size, 60), *rng.integers(0, 3000, 20)]:
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        gs_path.write_bytes(bytes(broken))
        try:
            shard = RangedShard(gs_path)
            for position in range(min(3, shard.num_records())):
                records.from_bytes(shard.read([position])[0])
        except BadRecord:
            pass


def test_depthlm(place, tmp_path):
    local = write_depthlm(tmp_path / "lm")
    far = upload(local.parent, place / "lm")
    fields = {"kind": "depthlm", "depth_kind": "z"}
    one = make_source("far", {"path": str(far / "train.jsonl"), **fields})
    same_records(one, make_source("local", {"path": str(local), **fields}))
    assert one[3].views[0].image.path == far / "3.png"
    (far / "3.png").unlink()
    with pytest.raises(BadRecord, match=r"3\.png: no such image file"):
        one[3].views[0].image.load()
    rows = [json.loads(line) for line in local.read_text().splitlines()]
    rows[2]["image"] = "../../secret.png"
    (far / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"bad\.jsonl:3: image '../../secret\.png' leaves the image folder"):
        make_source("far", {"path": str(far / "bad.jsonl"), **fields})
    with pytest.raises(UserError, match="far: no such file"):
        make_source("far", {"path": str(far / "none.jsonl"), **fields})


def test_a_failing_store_sets_a_record_aside(faulty, tmp_path):
    place, proxy = faulty
    far = upload(write_records(tmp_path / "data"), place / "data")
    source = make_source("far", {"path": str(far)})
    proxy.rule = servers.first(3, 503)
    assert source[0].id == "r0"
    proxy.rule = lambda *_: 503
    with pytest.raises(Unreadable, match=rf"^{far}/pairs.array_record\[1\]: failed .* 503"):
        source[1]
    proxy.rule = lambda *_: None
    assert source[1].id == "r1"


def test_build_and_photo(place, tmp_path, rng):
    options = synth.SynthOptions(width=64, height=48, focal_px=64.0)
    out = synth.build(str(place / "built"), 3, options, seed=1, workers=1, progress=False)
    local = synth.build(tmp_path / "built", 3, options, seed=1, workers=1, progress=False)
    for path in local.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert synth.build(str(place / "built"), 3, options, seed=1) == out
    with pytest.raises(UserError, match=rf"^{out}: holds another data set"):
        synth.build(str(place / "built"), 3, options, seed=2)
    assert not list((folders.cache() / "writing").iterdir())
    image = records.encode_image(blocks(rng, (32, 24)), "x")
    (place / "x.png").write_bytes(image.data)
    (place / "x.camera.json").write_text('{"K": [[30, 0, 16], [0, 30, 12], [0, 0, 1]]}')
    np.testing.assert_array_equal(open_photo(str(place / "x.png")).pixels, image.load())


def test_the_index_takes_one_request_and_a_record_one(faulty, tmp_path):
    place, proxy = faulty
    far = upload(write_records(tmp_path / "data"), place / "data")
    source = make_source("far", {"path": str(far)})
    source[0]
    proxy.seen.clear()
    for index in range(1, 9):
        assert source[index].id == pair_record(index, ((32, 24), (32, 24))).id
    assert len(proxy.seen) == 8
    assert buckets.READ_PATIENCE_S < 120
