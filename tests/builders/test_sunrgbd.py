"""SUN RGB-D: values turned by three bits, folders of four sensors, lists in a Matlab file; NYU's copy."""

import dataclasses

import numpy as np
import pytest

from tests.builders import files, truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.sunrgbd import NYUv2Sun, SunRGBD
from vlm3_jax.errors import BadRecord, UserError

io = pytest.importorskip("scipy.io")

NYU = "kv1/NYUdata/NYU0001"
FRAMES = {
    "kv1/b3dodata/img_0063": truth.Frame(52.9, 53.1, 31.0, 25.2, 64, 48, world.pose(0.1, 0, 0, 10, 2, 1)),
    "kv2/kinect2data/000002_2014": truth.Frame(40, 40, 27.3, 22.9, 56, 44, world.pose(0.3, 0.1, -0.5, -15)),
    "xtion/sun3ddata/mit_lab/room_1/0001": truth.Frame(55, 55, 32, 23, 64, 48, world.pose(-0.2, 0, 0.2, 3, -4)),
    "xtion/sun3ddata/mit_lab/room_1/0100": truth.Frame(55, 55, 32, 23, 64, 48, world.pose(-0.3, 0, 0.1, 30)),
    NYU: truth.Frame(50, 50, 28.4, 20.8, 56, 42, world.pose(0, 0.2, 0.4, 12, 1, -3)),
}


def turned(depth_m) -> np.ndarray:
    """Millimetres turned left by three bits, 0 where nothing is."""
    millimetres = files.steps(depth_m, 1000)
    return ((millimetres << 3) | (millimetres >> 13)).astype(np.uint16)


def write(root, kind="z", encode=turned):
    """All frames, train and test lists as the authors' own paths."""
    for name, frame in FRAMES.items():
        folder, seen = root / "SUNRGBD" / name, frame.seen()
        files.jpeg(folder / "image" / "0000103.jpg", seen.rgb)
        depth = np.where(getattr(seen, kind) < 8.19, getattr(seen, kind), np.inf)
        for part in ("depth", "depth_bfx"):
            other = name == NYU and part == "depth_bfx"
            files.png(folder / part / "0000103.png", encode(np.full_like(depth, np.inf) if other else depth))
        rows = ("" if name == NYU else "\n").join(
            f"{' '.join(map(str, row))} " for row in ((frame.fx, 0, frame.cx), (0, frame.fy, frame.cy), (0, 0, 1))
        )
        files.text(folder / "intrinsics.txt", rows)
    lists = {"alltrain": [NYU, "kv2/kinect2data/000002_2014"], "alltest": ["kv1/b3dodata/img_0063"]}
    cells = {}
    for key, names in lists.items():
        cells[key] = np.empty((1, len(names)), object)
        for n, name in enumerate(names):
            cells[key][0, n] = f"/n/fs/sun3d/data/SUNRGBD/{name}"
    path = root / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat"
    path.parent.mkdir(parents=True)
    io.savemat(path, cells)
    return root


def _built(root, split, builder=SunRGBD, **options) -> dict:
    made = builder(common.Options(**options))
    return {item.key: made.record(root, item) for item in made.frames(root, split)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sunrgbd"))


def _check(record, frame):
    z = frame.seen().z
    truth.check_depth(record, frame, 1e-3, valid=np.where(np.isfinite(z), np.rint(z * 1000), np.inf) <= 8000)


@pytest.mark.parametrize("name", ["kv1/b3dodata/img_0063", "kv2/kinect2data/000002_2014"])
def test_gives_back_the_world(root, name):
    record = (_built(root, "test") | {key: value for key, value in _built(root, "bench").items()})[name]
    _check(record, FRAMES[name])
    truth.check_image(record, FRAMES[name])
    truth.all_fail(lambda one: _check(one, FRAMES[name]), truth.wrong_depths(record))
    with pytest.raises(AssertionError):
        _check(record, dataclasses.replace(FRAMES[name], world_T_cam=FRAMES[NYU].world_T_cam))


@pytest.mark.parametrize(
    ("kind", "encode"), [("distance", turned), ("z", lambda depth: files.steps(depth, 1000))], ids=["distance", "bits"]
)
def test_other_meanings_of_the_values_would_fail(tmp_path, kind, encode):
    record = _built(write(tmp_path, kind, encode), "test")["kv1/b3dodata/img_0063"]
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES["kv1/b3dodata/img_0063"], 1e-3, least=0.01)


def test_splits_and_scenes(root):
    assert [item.key for item in SunRGBD().frames(root, "train")] == [NYU, "kv2/kinect2data/000002_2014"]
    bench = SunRGBD().frames(root, "bench")
    assert [item.key for item in bench] == sorted(set(FRAMES) - {NYU, "xtion/sun3ddata/mit_lab/room_1/0100"})
    assert bench[-1].scene == "xtion/sun3ddata/mit_lab/room_1"
    assert bench[0].scene == "kv1/b3dodata/img_0063"


def test_depthlm_stored_four_fifths(root):
    name = "kv1/b3dodata/img_0063"
    record = _built(root, "bench", depthlm=True)[name]
    z = FRAMES[name].seen().z
    depth = record.depth_maps[0].load()
    there = z < 8.19
    np.testing.assert_allclose(depth[there], 0.8 * z[there], atol=5e-4)
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES[name], 1e-3, least=0.1)


def test_nyus_copy_is_raw_depth(root):
    (record,) = _built(root, "bench", NYUv2Sun).values()
    _check(record, FRAMES[NYU])
    truth.all_fail(lambda one: _check(one, FRAMES[NYU]), truth.wrong_depths(record))


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    folder = tmp_path / "SUNRGBD" / "kv1" / "b3dodata" / "img_0063"
    (folder / "intrinsics.txt").write_text("1 2 3")
    with pytest.raises(BadRecord, match=r"img_0063/intrinsics\.txt"):
        _built(tmp_path, "test")
    files.png(folder / "depth_bfx" / "second.png", np.zeros((48, 64), np.uint16))
    with pytest.raises(BadRecord, match="found 2"):
        _built(tmp_path, "test")
    (tmp_path / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat").unlink()
    with pytest.raises(UserError, match="allsplit"):
        _built(tmp_path, "test")
