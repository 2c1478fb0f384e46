"""ScanNet++: iPhone depth in its three forms, a listing in no order, masks; fisheye photos with rendered depth."""

import json
import zlib

import numpy as np
import pytest

from tests.builders import files, truth, world
from vlm3_jax.builders import common
from vlm3_jax.builders.readers import iphone_depth
from vlm3_jax.builders.scannetpp import ScanNetppDslr, ScanNetppIphone
from vlm3_jax.errors import BadRecord, UserError

SCENE = "7b6477cb95"
WIDTH, HEIGHT = 96, 72
FRAMES = {
    number: truth.Frame(71.4 + number / 50, 71.4 + number / 50, 47.9, 35.6, WIDTH, HEIGHT, pose)
    for number, pose in {0: world.pose(0.1, 0, 0, 4, -6, 2), 10: world.pose(-0.5, 0.1, 0.4, -24, 3, 5)}.items()
}
HIDDEN = np.s_[0:36, 0:24]


def _depth(number: int, kind="z") -> np.ndarray:
    """float32 metres [192, 256], at the centres of its coarser or finer pixels; 0 where nothing is."""
    frame = FRAMES.get(number, FRAMES[0])
    scale = np.array([WIDTH / 256, HEIGHT / 192])
    depth = getattr(frame.seen((world.pixels(256, 192) + 0.5) * scale - 0.5), kind)
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def _framed(depths, pack) -> bytes:
    packed = [pack(depth) for depth in depths]
    return b"".join(len(data).to_bytes(4, "little") + data for data in packed)


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def _lz4(depth) -> bytes:
    block = pytest.importorskip("lz4.block")
    return block.compress(files.steps(depth, 1000).tobytes(), store_size=False)


FORMS = {
    "one stream": lambda depths: _deflate(np.stack(depths).tobytes()),
    "deflate frames": lambda depths: _framed(depths, lambda depth: _deflate(depth.tobytes())),
    "lz4 frames": lambda depths: _framed(depths, _lz4),
}


def write(root, form="folder", kind="z", spared=None):
    """Frames 0, 5 (not a tenth one), 10 and 20, which has no depth in the folder."""
    folder = root / "data" / SCENE / "iphone"
    depths = {number: _depth(number, kind) for number in (0, 10)}
    for number in (20, 10, 5, 0):
        name = f"frame_{number:06d}"
        files.jpeg(folder / "rgb" / f"{name}.jpg", FRAMES.get(number, FRAMES[0]).seen().rgb)
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[HIDDEN] = 0
        files.png(folder / "rgb_masks" / f"{name}.png", mask)
        if form == "folder" and number in depths:
            files.png(folder / "depth" / f"{name}.png", files.steps(depths[number], 1000))
    if form != "folder":
        empty = np.zeros((192, 256), np.float32)
        packed = FORMS[form]([depths.get(number, empty) for number in range(11)])
        (folder / "depth.bin").write_bytes(packed[:spared])
    tree = {}
    for number in (0, 5, 10, 20):
        frame = FRAMES.get(number, FRAMES[0])
        K = [[frame.fx, 0, frame.cx], [0, frame.fy, frame.cy], [0, 0, 1]]
        tree[f"frame_{number:06d}"] = {"intrinsic": K, "pose": np.eye(4).tolist()}
    files.dump(folder / "pose_intrinsic_imu.json", tree)
    files.text(root / "splits" / "nvs_sem_train.txt", f"{SCENE}\n")
    files.text(root / "splits" / "nvs_sem_val.txt", "")
    return root


def _built(root, builder=ScanNetppIphone, **options) -> dict:
    made, found = builder(common.Options(**options)), {}
    for item in made.frames(root, "train"):
        try:
            found[item.key.split("/")[1]] = made.record(root, item)
        except (common.Skip, BadRecord) as error:
            found[item.key.split("/")[1]] = error
    return found


def _valid(number: int) -> np.ndarray:
    valid = _depth(number) > 0
    valid[:96, :64] = False
    return valid


@pytest.mark.parametrize("form", ["folder", *FORMS])
@pytest.mark.parametrize("number", list(FRAMES))
def test_gives_back_the_world(tmp_path, form, number):
    record, frame, valid = _built(write(tmp_path, form))[f"frame_{number:06d}"], FRAMES[number], _valid(number)

    def check(record, frame=frame):
        truth.check_depth(record, frame, 1e-3, valid=valid)

    check(record)
    truth.check_image(record, frame)
    assert (record.depth_maps[0].kind, record.scene) == ("z", SCENE)
    if form == "folder":
        truth.all_fail(check, truth.wrong_depths(record))
        with pytest.raises(AssertionError):
            check(record, FRAMES[10 - number])


def test_distances_in_the_files_would_fail(tmp_path):
    record = _built(write(tmp_path, kind="distance"))["frame_000010"]
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES[10], 1e-3, least=0.3)


def test_frames_are_every_tenth_and_those_without_depth_are_counted(tmp_path):
    found = _built(write(tmp_path))
    assert list(found) == ["frame_000000", "frame_000010", "frame_000020"]
    assert isinstance(found["frame_000020"], common.Skip)


@pytest.mark.parametrize("form", list(FORMS))
def test_a_depth_file_that_is_cut_off_is_damage(tmp_path, form):
    found = _built(write(tmp_path, form, spared=-200))
    assert isinstance(found["frame_000010"], BadRecord)
    assert isinstance(found["frame_000020"], BadRecord)
    truth.check_depth(found["frame_000000"], FRAMES[0], 1e-3, valid=_valid(0))


def test_frames_of_a_stream_come_in_any_order(tmp_path):
    path = tmp_path / "depth.bin"
    path.write_bytes(FORMS["one stream"]([np.full((192, 256), n + 1, np.float32) for n in range(4)]))
    for number in (2, 0, 1, 3, 3, 1):
        assert (iphone_depth.read_frame(path, number) == number + 1).all()
    with pytest.raises(BadRecord, match="frame 4"):
        iphone_depth.read_frame(path, 4)
    assert (iphone_depth.read_frame(path, 1) == 2).all()


def test_depthlm_stored_neither_z_nor_distance(tmp_path):
    record = _built(write(tmp_path), depthlm=True)["frame_000010"]
    camera, label = record.views[0].camera, record.depth_maps[0]
    assert label.kind == "distance"
    assert camera.fx == pytest.approx(1427.4375 * WIDTH / 1920)
    x, y = np.moveaxis((world.pixels(256, 192) + 0.5) * [WIDTH / 256, HEIGHT / 192] - 0.5, -1, 0)
    expected = np.sqrt(((x - camera.cx) / camera.fx) ** 2 + ((y - camera.cy) / camera.fy) ** 2 + _depth(10) ** 2)
    np.testing.assert_allclose(label.load()[_valid(10)], expected[_valid(10)], atol=1.1e-3)


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "data" / SCENE / "iphone" / "pose_intrinsic_imu.json"
    tree = json.loads(path.read_text())
    del tree["frame_000010"]
    path.write_text(json.dumps(tree))
    assert "frame_000010" in str(_built(tmp_path)["frame_000010"])
    (tmp_path / "data" / SCENE / "iphone" / "rgb").rename(tmp_path / "rgb")
    with pytest.raises(UserError, match=r"rgb\.mkv"):
        _built(tmp_path)


# ---- DSLR: a fisheye whose corners see 70 degrees off the axis.

FISHEYE = {"fl_x": 48.0, "fl_y": 49.0, "cx": 48.3, "cy": 36.8, "k1": -0.03, "k2": 0.006, "k3": -0.002, "k4": 0.0005}
LENS = world.fisheye(*(FISHEYE[key] for key in ("k1", "k2", "k3", "k4")))
PHOTOS = {"DSC00031": world.pose(0.1, 0, -0.2, 5, 3, -2), "DSC00032": world.pose(-0.3, 0.2, 0.1, 38, -4, 6)}
WORLD_T_SCENE = world.pose(2, -1, 1, 10, 80, 30)


def _fisheye_rays() -> np.ndarray:
    # COLMAP's pixels: the first one's centre is 0.5.
    rays = world.pinhole(48.0, 49.0, 48.3 - 0.5, 36.8 - 0.5, WIDTH, HEIGHT)
    theta = world.invert(world.fisheye_angles(LENS), rays[..., :2].reshape(-1, 2)).reshape(HEIGHT, WIDTH, 2)
    r = np.linalg.norm(theta, axis=-1, keepdims=True)
    return np.concatenate([theta / np.maximum(r, 1e-12) * np.sin(r), np.cos(r)], -1)


def write_dslr(root, kind="z", pose=lambda matrix: matrix @ np.diag([1.0, -1, -1, 1]), change=None):
    """Two photos, one in frames and one in test_frames; a third is bad."""
    folder = root / "data" / SCENE / "dslr"
    rays, frames = _fisheye_rays(), []
    for name, world_T_cam in PHOTOS.items():
        seen = world.render(rays, world_T_cam)
        files.jpeg(folder / "resized_images" / f"{name}.JPG", seen.rgb)
        files.png(folder / "render_depth" / f"{name}.png", files.steps(getattr(seen, kind), 1000))
        files.png(folder / "resized_anon_masks" / f"{name}.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
        matrix = pose(np.linalg.inv(WORLD_T_SCENE) @ world_T_cam).tolist()
        frames.append(
            {"file_path": f"{name}.JPG", "mask_path": f"{name}.png", "transform_matrix": matrix, "is_bad": False}
        )
    bad = frames[0] | {"file_path": "DSC00030.JPG", "is_bad": True}
    tree = FISHEYE | {"w": WIDTH, "h": HEIGHT, "camera_model": "OPENCV_FISHEYE"} | (change or {})
    files.dump(
        folder / "nerfstudio" / "transforms.json", tree | {"frames": [frames[1], bad], "test_frames": frames[:1]}
    )
    files.text(root / "splits" / "nvs_sem_train.txt", f"{SCENE}\n")
    return root


def _dslr_frame(record, name: str) -> truth.Frame:
    camera = record.views[0].camera
    shift = np.array([48.3 - 0.5 - camera.cx, 36.8 - 0.5 - camera.cy])
    np.testing.assert_allclose(shift, np.rint(shift), atol=1e-6)
    assert camera.width > 40
    return truth.Frame(48.0, 49.0, camera.cx, camera.cy, camera.width, camera.height, PHOTOS[name])


def _check_dslr(record, name: str) -> None:
    # A nearest pixel of the fisheye is up to half of its pixels away, which spread towards the corners.
    truth.check_depth(record, _dslr_frame(record, name), 1e-3, spread_px=1.5, share=0.97, least=0.3)


@pytest.mark.parametrize("name", list(PHOTOS))
def test_photos_give_back_the_world(tmp_path, name):
    record = _built(write_dslr(tmp_path), ScanNetppDslr)[name]
    frame = _dslr_frame(record, name)
    _check_dslr(record, name)
    truth.check_image(record, frame, tolerance=5)
    truth.check_pose(record, [frame], world_T_own=WORLD_T_SCENE)
    truth.all_fail(lambda one: truth.check_pose(one, [frame], world_T_own=WORLD_T_SCENE), truth.wrong_poses(record))
    with pytest.raises(AssertionError):
        truth.check_depth(
            record,
            _dslr_frame(record, next(n for n in PHOTOS if n != name)),
            1e-3,
            spread_px=1.5,
            share=0.97,
            least=0.3,
        )


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "distance"}, {"change": {"k1": 0.1}}, {"change": {"cx": 50.3}}],
    ids=["distances", "another lens", "a principal point two pixels off"],
)
def test_photos_that_mean_something_else_would_fail(tmp_path, wrong):
    record = _built(write_dslr(tmp_path, **wrong), ScanNetppDslr)["DSC00032"]
    with pytest.raises(AssertionError):
        _check_dslr(record, "DSC00032")


def test_bad_photos_and_those_without_depth_are_counted(tmp_path):
    write_dslr(tmp_path)
    (tmp_path / "data" / SCENE / "dslr" / "render_depth" / "DSC00031.png").unlink()
    found = _built(tmp_path, ScanNetppDslr)
    assert list(found) == ["DSC00030", "DSC00031", "DSC00032"]
    assert "is_bad" in found["DSC00030"].reason
    assert "toolkit" in found["DSC00031"].reason


def test_another_camera_model_is_damage(tmp_path):
    found = _built(write_dslr(tmp_path, change={"camera_model": "OPENCV"}), ScanNetppDslr)
    assert "not OPENCV_FISHEYE" in str(found["DSC00032"])
