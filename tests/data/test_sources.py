import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from small_data import small_record, write_shard

from vlm3_jax import records
from vlm3_jax.camera import Focal
from vlm3_jax.config import component_config
from vlm3_jax.config_rules import check_component
from vlm3_jax.data import component
from vlm3_jax.data.packing import RowBudget
from vlm3_jax.data.samples import Bad
from vlm3_jax.data.sources import DepthLMSource, make_source
from vlm3_jax.errors import BadRecord, UserError

GOOD = {"image": "/a.png", "intrinsics": [50, 0, 16, 12, 32, 24], "pixel_coords": [[1, 2], [3, 4]], "depth": [1.5, 2]}


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.full((24, 32, 3), 7, np.uint8)).save(images / "a.png")
    return tmp_path


def source(folder, lines, **kwargs):
    text = [line if isinstance(line, bytes) else json.dumps({**GOOD, **line}).encode() for line in lines]
    (folder / "x.jsonl").write_bytes(b"\n".join(text) + b"\n")
    return DepthLMSource("x", folder / "x.jsonl", folder / "images", "z", **kwargs)


def test_real_jsonl(samples):
    path = samples / "ibims1" / "ibims1.jsonl"
    entry = {"kind": "depthlm", "path": str(path), "depth_kind": "z"}
    real = make_source("ibims", entry)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(real) == len(rows) == 70
    assert not real.bad
    for index in (0, 33, 69):
        record, row = real[index], rows[index]
        np.testing.assert_array_equal(record.depth[0].points_px, row["pixel_coords"])
        np.testing.assert_array_equal(record.depth[0].depth_m, row["depth"])
        camera = record.views[0].camera
        assert [camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height] == row["intrinsics"]
        assert record.views[0].image.load().shape == (480, 640, 3)
    last = make_source("ibims", {**entry, "first": 68, "limit": 5})
    assert [record.id for record in map(last.__getitem__, range(len(last)))] == [real[68].id, real[69].id]


def test_depths_of_ibims_are_z(samples):
    """Of the labelled points of a room many lie on its walls, which are planes if the depths are of the right kind."""
    path = samples / "ibims1" / "ibims1.jsonl"
    real = make_source("ibims", {"kind": "depthlm", "path": str(path), "depth_kind": "z", "limit": 20})

    def on_a_plane(points) -> int:
        """The most points within 1 % of their distance of a plane through three of them."""
        rng = np.random.default_rng(0)
        triples = points[np.array([rng.permutation(len(points))[:3] for _ in range(1000)])]
        normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        off = np.abs(points @ normals.T - (triples[:, 0] * normals).sum(1))
        return int((off < 0.01 * np.linalg.norm(points, axis=1)[:, None]).sum(0).max())

    planes = np.zeros(2, int)
    for record in map(real.__getitem__, range(20)):
        (label,), camera = record.depth, record.views[0].camera
        rays, depth = camera.rays(label.points_px), label.depth_m[:, None]
        planes += [on_a_plane(rays * depth), on_a_plane(rays / np.linalg.norm(rays, axis=1, keepdims=True) * depth)]
    assert planes[0] > 1.5 * planes[1], planes


def test_a_line_is_read_as_documented(folder):
    record = source(folder, [{}, {"intrinsics": [0, 40, 16, 12, 32, 24]}])
    assert record[0].depth[0].kind == "z"
    assert record[0].views[0].image.load()[0, 0, 0] == 7
    assert (record[0].views[0].camera.fy, record[1].views[0].camera.fx) == (50, 40)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{nonsense", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected a JSON object, got list"),
        ({"depth": [1.0]}, "pixel_coords has 2 points and depth 1 values"),
        ({"depth": ["1", "2"]}, "depth: expected numbers"),
        ({"depth": [[1, 2], [3]]}, "depth: its rows differ in length"),
        ({"pixel_coords": [[1, 2, 3], [4, 5, 6]]}, "pixel_coords: expected N x 2 numbers"),
        ({"pixel_coords": [], "depth": []}, "none of its 0 points"),
        ({"pixel_coords": [[32, 0], [0, 24]]}, "none of its 2 points is a point of the image with a depth above 0 and"),
        ({"depth": [float("nan"), -1]}, "none of its 2 points"),
        ({"depth": [1e10, 1e300]}, "and at most 1,000,000 m"),
        ({"depth": [1.5, True]}, "depth: expected numbers"),
        ({"pixel_coords": [[1, 2], [3, False]]}, "pixel_coords: expected numbers"),
        ({"intrinsics": [0.9, 1.2, 0.5, 0.5, 640, 480]}, "intrinsics: implausible field of view, 179.7 x 179.4 deg"),
        ({"intrinsics": [20, 20, 320, 240, 640, 480]}, "give focal lengths in pixels of that image"),
        ({"intrinsics": [50_000, 0, 320, 240, 640, 480]}, "intrinsics: implausible field of view, 0.7"),
        ({"intrinsics": [1, 2, 3]}, "intrinsics: expected 6 numbers"),
        ({"intrinsics": [float("inf"), 50, 16, 12, 32, 24]}, "intrinsics: not finite"),
        ({"intrinsics": [-5, 50, 16, 12, 32, 24]}, "focal lengths must be positive"),
        ({"image": 5}, "image: expected a path"),
        ({"image": "/"}, "image: expected a path"),
        (b'{"image": "a.png"}', "field 'intrinsics' is missing"),
    ],
)
def test_malformed_line_is_named_and_set_aside(folder, line, why):
    lines = [{}, {}, line, {}]
    with pytest.raises(UserError, match=r"x\.jsonl:3: ") as error:
        source(folder, lines)
    assert why in str(error.value)
    assert "1 of 4 lines" in str(error.value)
    tolerant = source(folder, lines, max_bad_fraction=0.5)
    assert [(bad.line, why in bad.reason) for bad in tolerant.bad] == [(3, True)]
    found = [record and record.id for record in map(tolerant.__getitem__, range(4))]
    assert found == ["a.png#1", "a.png#2", None, "a.png#4"]


def test_unusable_points_are_removed_and_counted(folder):
    points = {"pixel_coords": [[1, 2], [31, 23], [32, 5], [-1, 5], [3, 3]], "depth": [1, 2, 3, 4, 0]}
    cleaned = source(folder, [points, {}])
    assert cleaned.removed.count == 3
    (told,) = cleaned.removed.take("a.png#1")
    assert (told.index, told.file.rpartition("/")[2]) == (0, "x.jsonl:1")
    assert told.label == "depth[2] (32, 5) 3 m, [3] (-1, 5) 4 m, [4] (3, 3) 0 m"
    assert told.reason == f"not {records.DepthPoints.RULE}"
    assert cleaned.removed.take("a.png#1") == []
    np.testing.assert_array_equal(cleaned[0].depth[0].points_px, [[1, 2], [31, 23]])
    assert source(folder, [{"depth": [None, 2]}])[0].depth[0].depth_m.tolist() == [2]
    far = {"depth": [1e6, 1e10]}
    assert source(folder, [points, far])[1].depth[0].depth_m.tolist() == [1e6]
    # Of the lines that are used.
    assert source(folder, [points, far], first=1).removed.count == 1


def test_a_byte_order_mark_is_no_part_of_the_first_line(folder):
    marked = source(folder, [b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), {"depth": [5, 6]}])
    assert [record.depth[0].depth_m.tolist() for record in map(marked.__getitem__, range(2))] == [[1.5, 2], [5, 6]]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("\n".join([json.dumps(GOOD)] * 3).encode("utf-16"), "x.jsonl:1: not JSON ('utf-8' codec can't decode"),
        (json.dumps([GOOD, GOOD]).encode(), "x.jsonl:1: expected a JSON object, got list"),
        (json.dumps({**GOOD, "depth": ["1", "2"]}).encode(), "x.jsonl:1: depth: expected numbers"),
    ],
)
def test_lines_that_are_all_bad_end_with_the_first_reason(folder, data, why):
    (folder / "x.jsonl").write_bytes(data)
    with pytest.raises(UserError) as error:
        DepthLMSource("x", folder / "x.jsonl", folder / "images", "z", max_bad_fraction=1.0)
    assert why in str(error.value)
    assert "no usable line in [0, end)" in str(error.value)


def test_paths_stay_inside_the_image_folder(folder):
    (folder / "secret.png").write_bytes((folder / "images" / "a.png").read_bytes())
    for path in ("../secret.png", "/../secret.png", "b/../../secret.png", ".."):
        with pytest.raises(UserError, match=r"x\.jsonl:2: image .* leaves the image folder"):
            source(folder, [{}, {"image": path}])
    (folder / "images" / "link.png").symlink_to(folder / "secret.png")
    with pytest.raises(UserError, match=r"x\.jsonl:2: image 'link\.png' leaves") as error:
        source(folder, [{}, {"image": "link.png"}])[1]
    assert not isinstance(error.value, BadRecord)
    assert source(folder, [{"image": "b/../a.png"}])[0].views[0].image.load() is not None


def test_huge_line_and_missing_files(folder, monkeypatch):
    monkeypatch.setattr("vlm3_jax.data.sources.depthlm.MAX_LINE_BYTES", 1000)
    with pytest.raises(UserError, match=r"x\.jsonl:2: the line is longer than 1000 bytes"):
        source(folder, [{}, b" " * 2000])
    with pytest.raises(UserError, match="the file has no lines"):
        source(folder, [b""])
    with pytest.raises(UserError, match="no usable line"):
        source(folder, [{}], first=1)
    missing = source(folder, [{"image": "gone.png"}])[0]
    with pytest.raises(BadRecord, match=r"gone\.png: no such image file"):
        missing.views[0].image.load()


def test_shards(shards, tmp_path):
    small = make_source("small", {"path": str(shards), "first": 28, "limit": 4})
    assert [small[i].id for i in range(len(small))] == ["r28", "r29", "r30", "r31"]
    np.testing.assert_array_equal(small[3].depth[0].depth_m, small_record(31).depth[0].depth_m)
    assert len(make_source("small", {"path": str(shards / "small.array_record-*")})) == 60
    write_shard(tmp_path / "b.array_record", [small_record(0), b"\xc1 not a record", small_record(2)])
    broken = make_source("b", {"path": str(tmp_path)})
    assert broken[2].id == "r2"
    with pytest.raises(BadRecord, match=r"b\.array_record\[1\]: not a record"):
        broken[1]
    (tmp_path / "c.array_record").write_bytes((tmp_path / "b.array_record").read_bytes()[:70_000])
    with pytest.raises(UserError, match=r"c\.array_record: not a readable ArrayRecord file"):
        make_source("b", {"path": str(tmp_path)})
    with pytest.raises(UserError, match="no ArrayRecord shards"):
        make_source("none", {"path": str(tmp_path / "none")})


def test_unusable_labels_of_records_are_removed_and_counted(tmp_path):
    """One NaN costs its point, not the record; a record with nothing left is set aside."""
    whole = small_record(0)
    (points,) = whole.depth
    cloud = np.ones((5, 3), np.float32)
    boxes = np.array([[1, 2, 30, 40], [10, 10, 1, 1], [5, 5, 5, 5], [1, 2, 30, 41], [1, 2, 30, 42]])
    clouds = (cloud, cloud, cloud, np.zeros((0, 3), np.float32), cloud * np.float32("nan"))
    objects = records.Objects(boxes, tuple("abcde"), clouds)
    damaged = np.array([np.nan, 1e10, -1, 0, *points.depth_m[4:]])
    bad = dataclasses.replace(points, depth_m=damaged)
    nothing = dataclasses.replace(points, depth_m=points.depth_m * np.nan)
    items = [
        dataclasses.replace(whole, depth=(bad,), objects=(objects,)),
        whole,
        dataclasses.replace(whole, depth=(nothing,)),
    ]
    write_shard(tmp_path / "a.array_record", items)
    found = make_source("a", {"path": str(tmp_path)})
    for _ in range(2):
        np.testing.assert_array_equal(found[0].depth[0].depth_m, points.depth_m[4:])
        assert found[0].objects[0].names == ("a",)
        np.testing.assert_array_equal(found[1].depth[0].depth_m, points.depth_m)
        assert found.removed.count == 8
    depth, objects = found.removed.take(whole.id)[:2]
    shown = [f"[{n}] ({x}, {y})" for n, (x, y) in enumerate(points.points_px[:4].tolist())]
    assert depth.label == "depth[0]" + ", ".join(map("{} {} m".format, shown, ("nan", "1e+10", "-1", "0")))
    assert objects.label.startswith("objects[0][1] 'b' [10, 10, 1, 1], 5 surface points, [2] 'c' [5, 5, 5, 5], 5 surf")
    assert depth.file == f"{tmp_path / 'a.array_record'}[0]"
    with pytest.raises(BadRecord, match=r"\[2\]: none of its 40 labels is a point of the image with a"):
        found[2]


def test_components_are_strict():
    with pytest.raises(UserError, match="no field 'wieght'; did you mean 'weight'"):
        component_config(wieght=2)
    with pytest.raises(UserError, match=r"component 'a': .*'questions' of a component must be"):
        check_component("a", {"path": "x", "questions": "many"})
    with pytest.raises(UserError, match=r"component 'a': depth_kind is ''; choose one of"):
        check_component("a", {"kind": "depthlm", "path": "x"})
    with pytest.raises(UserError, match=r"component 'a': flip = 1\.5 is out of range"):
        check_component("a", {"path": "x", "flip": 1.5})


def one_component(settings, path, **fields):
    entry = {"path": str(path), "protocol": "short", "resize": "focal:100", **fields}
    return component.Component("c", entry, make_source("c", entry), settings)


def test_sample_depends_on_its_key_only(settings, shards):
    c = one_component(settings, shards, flip=0.5)
    first, again = c.sample(3, (0, 1), "x"), c.sample(3, (0, 1), "x")
    np.testing.assert_array_equal(first.tokens, again.tokens)
    others = [c.sample(3, (0, key), "x") for key in range(20)]
    assert any(not np.array_equal(first.tokens, other.tokens) for other in others)
    assert 4 <= sum(other.images[0].flip for other in others) <= 16


def test_oversize_sample_is_cropped_not_resized(settings, tmp_path):
    write_shard(tmp_path / "a.array_record", [small_record(0, (640, 480))])
    tight = component.SampleSettings(settings.chat, settings.vision, RowBudget(512, 400, 200))
    sample = one_component(tight, tmp_path).sample(0, (0, 0), "x")
    record = sample.record
    layout, camera = sample.images[0], record.views[0].camera
    assert layout.n_patches <= 400
    assert layout.n_patches > 300
    assert (camera.fx, layout.size) == (100.0, (640, 480))
    left, top, right, bottom = layout.crop
    assert layout.final == (right - left, bottom - top)
    # The labels that are left still lie on the pixels that they were written for.
    whole = records.unify(make_source("a", {"path": str(tmp_path)})[0], Focal(100.0))
    known = {(x, y): d for (x, y), d in zip(whole.depth[0].points_px.tolist(), whole.depth[0].depth_m, strict=True)}
    moved = record.depth[0].points_px + np.array([left, top])
    assert 0 < len(moved) < 40
    assert [known[tuple(point)] for point in moved.tolist()] == record.depth[0].depth_m.tolist()
    strict = component.SampleSettings(settings.chat, settings.vision, RowBudget(512, 400, 200), oversize="error")
    with pytest.raises(UserError, match=r"record r0 is larger than a row .*1200 patches"):
        one_component(strict, tmp_path).sample(0, (0, 0), "x")
    few_targets = component.SampleSettings(settings.chat, settings.vision, RowBudget(512, 400, 20))
    with pytest.raises(UserError, match="ask fewer questions"):
        one_component(few_targets, tmp_path).sample(0, (0, 0), "x")


def test_images_are_not_blown_up_beyond_reason(settings, tmp_path):
    write_shard(tmp_path / "a.array_record", [small_record(0)])
    found = one_component(settings, tmp_path, resize="focal:1e6").sample(0, (0, 0), "x")
    assert isinstance(found, Bad)
    assert "resized by focal:1e+06 the image would have" in found.reason
