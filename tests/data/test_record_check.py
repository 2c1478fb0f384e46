"""Records whose parts disagree, and images that a model could not see as they are: set aside, naming the field."""

import contextlib
import io

import msgpack
import numpy as np
import pytest
from PIL import ExifTags, Image
from small_data import Opened, load, small_record, write_shard

from vlm3_jax import records
from vlm3_jax.data import check, inspect
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.evaluate import items


def stored(values) -> dict:
    values = np.asarray(values)
    return {"dtype": values.dtype.str, "shape": list(values.shape), "bytes": values.tobytes()}


def tree() -> dict:
    """A record of two views with every kind of label, as it is stored."""
    one, two = (small_record(n) for n in range(2))
    return msgpack.unpackb(
        records.to_bytes(
            records.Record(
                "r",
                one.views + two.views,
                one.depth,
                (records.Objects(np.array([[1, 2, 30, 40]]), ("chair",), (np.ones((5, 3)),)),),
                records.Matches(np.array([[1, 2], [3, 4]]), np.array([[1.5, 2], [3, 4]])),
                0.5,
            )
        )
    )


FAULTS = [
    (("depth", 0, "view"), 2, "depth[0].view: is 2, and the record has 2 views, counted from 0"),
    (("depth", 0, "view"), -1, "depth[0].view: is -1"),
    (("depth", 0, "view"), "0", "depth[0].view: is '0'"),
    (("depth", 0, "depth_m"), stored(np.ones(39)), "depth[0].depth_m: expected 40 numbers, got shape [39]"),
    (("depth", 0, "depth_m"), stored(["far"] * 40), "depth[0].depth_m: expected an array of numbers"),
    (("depth", 0, "points_px"), stored(np.ones((40, 1))), "depth[0].points_px: expected N x 2 numbers"),
    (("depth", 0, "points_px"), stored(np.full((40, 2), np.nan)), "depth[0].points_px: its pixels are not finite"),
    (("depth", 0, "points_px"), {"dtype": "|O", "shape": [0, 2], "bytes": b""}, "points_px: expected an array of"),
    (("depth", 0, "points_px", "shape"), [2**63, 2], "not a record of this project (ValueError"),
    (("depth", 0, "kind"), "disparity", 'depth[0].kind: expected "distance" or "z", got \'disparity\''),
    (("objects", 0, "view"), 5, "objects[0].view: is 5"),
    (("objects", 0, "boxes_px"), stored(np.ones((2, 4))), "objects[0].names: expected a list of 2, one for each box"),
    (("objects", 0, "names"), "c", "objects[0].names: expected a list of 1"),
    (("objects", 0, "names"), [7], "objects[0].names: expected text"),
    (("objects", 0, "points_m"), [], "objects[0].points_m: expected a list of 1"),
    (("objects", 0, "points_m"), [stored(np.ones((5, 2)))], "objects[0].points_m[0]: expected N x 3 numbers"),
    (
        ("matches", "points1_px"),
        stored(np.ones((3, 2))),
        "matches.points1_px: expected 2 x 2 numbers, got shape [3, 2]",
    ),
    (("matches",), [1], "not a record of this project (TypeError"),
    (("views",), [], "depth[0].view: is 0, and the record has 0 views"),
    (("covisibility",), "high", "covisibility: expected a number, got 'high'"),
    (("covisibility",), float("nan"), "covisibility: expected a number, got nan"),
    (("metric",), "yes", "metric: expected true or false, got 'yes'"),
    (("views", 0, "image", "data"), "text", "views[0].image.data: expected the bytes of an image file"),
    (("views", 1, "image", "data"), None, "views[1].image.data: expected the bytes of an image file"),
    (("views", 0, "image", "name"), 3, "views[0].image.name: expected text"),
    (("views", 0, "image", "width"), 128.5, "views[0].image: expected whole numbers as its size, got (128.5, 96)"),
    (("views", 0, "camera", "fx"), "wide", "views[0].camera: expected the numbers cx, cy, fx, fy, height, width"),
    (("views", 0, "camera", "fx"), 0.9, "views[0].camera: implausible field of view, 178.4 x 51.3 degrees"),
    (("views", 0, "camera", "height"), 0, "camera: image size must be at least 1 x 1"),
    (("views", 0, "world_T_cam"), stored(np.eye(3)), "views[0].world_T_cam: expected 4 x 4 numbers, got shape [3, 3]"),
    (("views", 0, "crop"), [1, 2, 3], "views[0].crop: expected 4 whole numbers, got [1, 2, 3]"),
    (("views", 0, "flip"), 1, "views[0].flip: expected true or false, got 1"),
]


def broken(path, value) -> bytes:
    whole = tree()
    node = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    if path == ("views",):
        whole["matches"] = None
    return msgpack.packb(whole)


@pytest.mark.parametrize(("path", "value", "why"), FAULTS, ids=lambda value: None)
def test_a_malformed_record_names_the_field(path, value, why):
    assert records.from_bytes(msgpack.packb(tree())).covisibility == 0.5
    with pytest.raises(BadRecord) as error:
        records.from_bytes(broken(path, value))
    assert str(error.value).startswith(why) or why in str(error.value)


def test_a_record_has_no_say_in_which_files_are_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(small_record(1).views[0].image.data)
    whole = tree()
    whole["views"][0]["image"] |= {"path": str(tmp_path / "secret.png")}
    assert records.from_bytes(msgpack.packb(whole)).views[0].image.path is None


def test_labels_of_no_objects_need_no_second_axis():
    whole = tree()
    whole["objects"][0] |= {"boxes_px": stored(np.array([])), "names": [], "points_m": []}
    assert records.from_bytes(msgpack.packb(whole)).objects[0].boxes_px.shape == (0, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_malformed_records_are_set_aside_everywhere(settings, tmp_path, workers):
    """In training, in the check and as questions of an evaluation; the others keep their order."""
    faults = FAULTS[:6:2] + FAULTS[-12:-8]
    good = [small_record(number) for number in range(20)]
    write_shard(tmp_path / "a.array_record", [*good, *(broken(*fault[:2]) for fault in faults)])
    table = {"a": {"path": str(tmp_path), "protocol": "short", "resize": "focal:100", "questions": 6, "flip": 0.5}}
    opened, quarantine = Opened(table, settings, 2), Quarantine(tmp_path / "q.jsonl", 0.6)
    batches = load(opened, settings, 6, workers=workers, quarantine=quarantine)
    seen = {id.split("/")[1].split("@")[0] for batch in batches for row in batch.ids for id in row}
    assert seen <= {str(number) for number in range(20)}
    assert quarantine.bad > 0
    report = check.check(opened.components)
    assert [item.id for item in report.bad] == [f"a/{20 + n}" for n in range(len(faults))]
    for item, (_, _, why) in zip(report.bad, faults, strict=True):
        assert item.reason.startswith(str(tmp_path / "a.array_record["))
        assert why in item.reason
    with pytest.raises(UserError, match=rf"^{len(faults)} of {20 + len(faults)} samples were unusable"):
        items.HeldOut(opened.components[:1])


def encoded(image: Image.Image, format: str, **kwargs) -> records.ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return records.ImageRef(*image.size, "a", data=buffer.getvalue())


def test_formats(rng):
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    colour = Image.fromarray(pixels)
    np.testing.assert_array_equal(encoded(colour, "PNG").load(), pixels)
    np.testing.assert_array_equal(encoded(colour, "WEBP", lossless=True).load(), pixels)
    assert encoded(colour, "JPEG").load().shape == (24, 32, 3)
    # What some phones and cameras write as .jpg.
    assert encoded(colour, "MPO", save_all=True, append_images=[colour]).load().shape == (24, 32, 3)
    grey = encoded(Image.fromarray(pixels[..., 0]), "PNG").load()
    np.testing.assert_array_equal(grey, np.repeat(pixels[..., :1], 3, -1))
    for other in ("BMP", "TIFF", "PPM", "EPS"):
        with pytest.raises(BadRecord, match=r"^a: cannot decode the image \(no JPEG, PNG, WEBP file\)$"):
            encoded(colour, other).load()


def test_an_image_of_16_bits_is_refused(rng):
    """Pillow would clip it: nearly all of it would be white."""
    deep = Image.fromarray(rng.integers(0, 2**16, (24, 32)).astype(np.uint16))
    assert deep.mode == "I;16"
    with pytest.raises(BadRecord, match=r"^a: an image of 16 or more bits a pixel \(I;16\); convert it to 8 bits$"):
        encoded(deep, "PNG").load()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_that_viewers_turn_is_refused(format, rng):
    """Its labels may be for the pixels as stored or as seen."""
    colour = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    for turn in (1, 6, 3, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = turn
        image = encoded(colour, format, exif=exif)
        if turn in (1, 9):
            assert image.load().shape == (24, 32, 3)
            continue
        with pytest.raises(BadRecord, match=rf"^a: its EXIF orientation is {turn}; store it as it is seen"):
            image.load()
    # Damaged EXIF says nothing about the pixels.
    assert encoded(colour, "JPEG", exif=b"Exif\0\0nonsense").load().shape == (24, 32, 3)


@pytest.mark.parametrize("cut", [30, 300, 2000])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_bytes_end_in_a_reason(format, cut, rng):
    image = encoded(Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)), format)
    with pytest.raises(BadRecord, match=r"^a: cannot decode the image"):
        records.ImageRef(64, 48, "a", data=image.data[:cut]).load()
    for seed in range(50):
        noise = np.random.default_rng(seed)
        data = np.frombuffer(image.data, np.uint8).copy()
        data[noise.integers(8, len(data), 20)] = noise.integers(0, 256, 20)
        # Some damage goes unnoticed; anything but pixels or a BadRecord fails the test.
        with contextlib.suppress(BadRecord):
            assert records.ImageRef(64, 48, "a", data=data.tobytes()).load().shape == (48, 64, 3)


def test_show_says_why_there_is_no_sample(settings, jsonl, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    empty = small_record(1)
    empty = records.Record("r", empty.views)
    write_shard(folder / "a.array_record", [small_record(0, covisibility=0.1), empty, small_record(2)])
    table = {"a": {"path": str(folder), "protocol": "short", "resize": "focal:100", "covisibility_min": 0.25}}
    opened = Opened(table, settings, 1)
    said = {opened.mixture.draw(i).record: inspect.show(opened.mixture, i) for i in range(3)}
    assert said[0].endswith("record 0 of a gives no sample: its covisibility, 0.1, is below covisibility_min = 0.25")
    assert said[1].endswith("gives no sample: it has no labels that task depth can ask about")
    assert said[2].startswith("a/2@0: record r2, task depth")
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('\n{"image": 1}\n')
    opened = Opened(jsonl, settings, 1, max_bad_fraction=0.5)
    index = next(i for i in range(11) if opened.mixture.draw(i).record == 10)
    why = "record 10 of x gives no sample: its line was set aside when the file was opened (vlm3 data check says why)"
    assert inspect.show(opened.mixture, index) == f"index {index}: {why}"
