import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.builders import files, pairs, world
from vlm3_jax.builders.common import image
from vlm3_jax.builders.megadepth import DENSE, AerialMegaDepth, MegaDepth
from vlm3_jax.formats import colmap

h5py = pytest.importorskip("h5py")
NAMES = ("9616344_27950454e0_o.jpg", "1416978_a6f1f7a16b_o.jpg", "5978745_520771b1cb_o.jpg")
CAMERA = {"fx": 50.0, "fy": 50.0, "cx": (pairs.WIDTH - 1) / 2, "cy": (pairs.HEIGHT - 1) / 2}
FRAMES = dict(zip(NAMES, pairs.walk(**CAMERA), strict=True))
# Images see points 0..9, 5..14 and 10..19: the first and the last share none.
POINTS = {name: range(5 * n, 5 * n + 10) for n, name in enumerate(NAMES)}
HEADER = "# Camera list with one line of data per camera:\n#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n# Number: 1\n"


def write(images, depths, model, camera: str, frames=FRAMES, points=POINTS) -> None:
    lines = []
    for n, (name, frame) in enumerate(frames.items()):
        seen = frame.seen()
        files.jpeg(images / name, seen.rgb)
        depths.mkdir(parents=True, exist_ok=True)
        with h5py.File(depths / f"{name[:-4]}.h5", "w") as file:
            file["depth"] = np.where(np.isfinite(seen.z), seen.z, -1 if n else 0).astype(np.float32)
        cam_T_world = np.linalg.inv(frame.world_T_cam)
        x, y, z, w = Rotation.from_matrix(cam_T_world[:3, :3]).as_quat()
        numbers = " ".join(f"{v:.12g}" for v in (w, x, y, z, *cam_T_world[:3, 3]))
        seen_points = " ".join(f"{10.5 + p} 20.25 {p}" for p in points[name]) + " 3.0 4.0 -1"
        lines += [f"{9 - n} {numbers} 1 {name}", seen_points]
    files.text(model / "cameras.txt", f"{HEADER}1 {camera}\n")
    files.text(model / "images.txt", "# Image list\n# two lines\n# per image\n# x\n" + "\n".join(lines) + "\n")


@pytest.fixture
def raw(tmp_path):
    radial = f"SIMPLE_RADIAL {pairs.WIDTH} {pairs.HEIGHT} 50.0 {pairs.WIDTH / 2} {pairs.HEIGHT / 2} 0.0"
    for scene, k in (("0000", "1"), ("0015", "0")):
        dense = tmp_path / scene / f"dense{k}"
        write(dense / "imgs", dense / "depths", tmp_path / scene / "sparse/manhattan" / k, radial)
    return tmp_path


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(MegaDepth(), raw)
    assert not skipped
    first, second, third = NAMES
    assert set(records) == {
        f"0000_1/{b}-{a}" if a > b else f"0000_1/{a}-{b}" for a, b in ((first, second), (second, third))
    }
    pairs.check(records, FRAMES)
    assert {record.scene for record in pairs.build(MegaDepth(), raw, "val")[0].values()} == {"0015_0"}
    assert not any(record.metric for record in records.values())


@pytest.mark.parametrize("kind", ["numbers", "structured", "objects"])
def test_pairs_are_those_of_the_list(raw, kind):
    rows = [(1, 0, 2, 0.75), (0, 0, 1, 0.5)]
    if kind == "structured":
        rows = np.array(rows, [("scene", "i4"), ("a", "i4"), ("b", "i4"), ("score", "f4")])
    elif kind == "objects":
        rows = np.array(rows, object)
    images = np.array([NAMES[0], NAMES[1], NAMES[2], None], object)
    np.savez(raw / "megadepth_pairs.npz", scenes=np.array(["0015 0", "0000 1"], object), images=images, pairs=rows)
    records, _ = pairs.build(MegaDepth(), raw)
    assert list(records) == [f"0000_1/{NAMES[0]}-{NAMES[2]}"]
    pairs.check(records, FRAMES)


@pytest.mark.parametrize("k", [-0.08, 0.06])
def test_the_camera_after_undistortion_is_colmaps(raw, k):
    """COLMAP keeps the focal length and cuts each axis where the undistorted border is nearest or farthest."""
    width, height, focal = 1200, 900, 1000.0
    plane = world.opencv(k1=k)
    new = []
    for axis, size in enumerate((width, height)):
        along = np.arange((height, width)[axis]) + 0.5
        border = np.stack([np.full_like(along, size - 0.5), along], -1)[:, :: 1 - 2 * axis]
        centre = np.array([width, height]) / 2
        bent = world.invert(plane, (border - centre) / focal)[:, axis] * focal + size / 2
        new.append(int(size / max((size - 0.5 - size / 2) / (bent.min() - size / 2), 0)))
    files.jpeg(raw / "new.jpg", np.zeros((new[1], new[0], 3), np.uint8))
    stored = colmap.ModelCamera("SIMPLE_RADIAL", width, height, (focal, width / 2, height / 2, k))
    found = MegaDepth().camera(stored, image(raw / "new.jpg"))
    assert new[0] != width
    np.testing.assert_allclose([found.fx, found.fy], focal, rtol=2e-3)
    assert [found.cx, found.cy] == [(new[0] - 1) / 2, (new[1] - 1) / 2]


def test_aerial_views_have_no_sky(tmp_path):
    dense = tmp_path / "0001" / DENSE
    frames = {f"{name}.jpg": frame for name, frame in FRAMES.items()}
    points = {f"{name}.jpg": seen for name, seen in POINTS.items()}
    camera = f"SIMPLE_PINHOLE {pairs.WIDTH} {pairs.HEIGHT} 50.0 {pairs.WIDTH / 2} {pairs.HEIGHT / 2}"
    write(dense / "images", dense / "depths", dense / "sparse-txt", camera, frames, points)
    for name in frames:
        mask = np.zeros((pairs.HEIGHT, pairs.WIDTH), np.uint8)
        mask[:10] = 2
        files.png(tmp_path / f"aerialmegadepth_segmasks/0001/{name}.png", mask)
    records, skipped = pairs.build(AerialMegaDepth(), tmp_path)
    assert not skipped
    assert len(records) == 2
    pairs.check(records, frames, covered=0.5)
    for record in records.values():
        there = np.isfinite(record.depth_maps[0].load())
        assert not there[:10].any()
        assert there[10:].any()
