"""Sources of files in place give back the analytic world that the files were written from."""

import json

import numpy as np
import pytest

from tests import own_data
from tests.builders.files import png, text
from vlm3_jax import records
from vlm3_jax.config_rules import check_component
from vlm3_jax.data.component import Component
from vlm3_jax.data.sources import items, make_source, name_lists
from vlm3_jax.errors import BadRecord, UserError


def source(kind, path, **fields):
    return make_source("own", {"kind": kind, "path": str(path), **fields})


def drawn(record, count=60):
    return records.draw_labels(record, np.random.default_rng(0), count)


def check_depth(record, poses, tolerance):
    """Depth points against the world, seen by the poses that the files were written with."""
    for label in record.depth:
        expected = own_data.truth(poses[label.view], label.points_px, label.kind)
        off = np.abs(np.asarray(label.depth_m) / expected - 1)
        # At an edge a coarser map shows what lies beside it.
        assert np.quantile(off, 0.8) < tolerance, np.sort(off)[-10:]
        wrong = own_data.truth(own_data.poses(1, scene=1)[0], label.points_px, label.kind)
        assert np.quantile(np.abs(label.depth_m / wrong - 1), 0.8) > tolerance


def check_matches(record, poses):
    """Both ends of the matches are the same point of the world."""
    ends = []
    for pose, pixels in zip(poses, (record.matches.points0_px, record.matches.points1_px)):
        rays = np.c_[(pixels - own_data.K[2:]) / own_data.K[:2], np.ones(len(pixels))]
        z = own_data.truth(pose, pixels)
        # A pixel rounded over an edge may look past everything.
        z = np.where(np.isfinite(z), z, np.nan)
        ends.append((rays * z[:, None]) @ pose[:3, :3].T + pose[:3, 3])
    apart = np.linalg.norm(ends[0] - ends[1], axis=1)
    assert np.isfinite(apart).sum() > 10
    assert np.nanmedian(apart) < 0.1


# RGB-D folders


@pytest.mark.parametrize("kind", ["z", "distance"])
def test_rgbd_folders(tmp_path, kind):
    found = source("rgbd", own_data.rgbd(tmp_path / "house", kind=kind), depth_kind=kind)
    assert [found[i].id for i in range(len(found))] == [f"room{s}/rgb/{n:03d}.jpg" for s in range(2) for n in range(4)]
    for index, (scene, n) in {1: (0, 1), 6: (1, 2)}.items():
        record, pose = found[index], own_data.poses(4, scene)[n]
        assert (record.scene, record.depth_maps[0].kind) == (f"room{scene}", kind)
        assert (record.depth_maps[0].width, record.views[0].image.width) == (32, 64)
        np.testing.assert_allclose(record.views[0].world_T_cam, pose, atol=1e-12)
        camera = record.views[0].camera
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == own_data.K
        assert record.views[0].image.load().shape == (48, 64, 3)
        check_depth(drawn(record), [pose], 0.03)


def test_rgbd_pairs_and_parts(tmp_path):
    folder = own_data.rgbd(tmp_path / "house", scenes=3)
    pairs = source("rgbd", folder, depth_kind="z", gaps=(1, 2), task="correspondence")
    assert len(pairs) == 3 * (3 + 2)
    assert pairs[1].id == "room0/rgb/000.jpg+room0/rgb/002.jpg"
    record = drawn(pairs[0])
    assert record.covisibility > 0.5
    check_matches(record, own_data.poses(4)[:2])
    parts = {p: source("rgbd", folder, depth_kind="z", part=p, held_out=0.3) for p in ("train", "held_out")}
    scenes = {p: {found[i].scene for i in range(len(found))} for p, found in parts.items()}
    assert (len(scenes["train"]), len(scenes["held_out"])) == (2, 1)
    assert not scenes["train"] & scenes["held_out"]


def test_one_scene_is_parted_by_its_frames(tmp_path):
    folder = own_data.rgbd(tmp_path / "house", scenes=1, frames=5)
    one = folder / "room0"
    train, held = (source("rgbd", one, depth_kind="z", part=p, held_out=0.2) for p in ("train", "held_out"))
    assert [train[i].id for i in range(len(train))] == [f"rgb/{n:03d}.jpg" for n in range(4)]
    assert [held[0].id, len(held)] == ["rgb/004.jpg", 1]
    # A pair has both of its frames in its part.
    pairs = source("rgbd", one, depth_kind="z", part="train", held_out=0.4, gaps=(1,))
    assert [pairs[i].id for i in range(len(pairs))] == [f"rgb/{n:03d}.jpg+rgb/{n + 1:03d}.jpg" for n in range(2)]


def test_a_file_of_intrinsics_a_frame_and_other_names(tmp_path, caplog):
    scene = own_data.rgbd(tmp_path / "house", scenes=1, posed=False) / "room0"
    (scene / "rgb").rename(scene / "color")
    (scene / "intrinsics.txt").unlink()
    for n in range(4):
        fx, fy, cx, cy = own_data.K
        tree = {"K": [[fx + n, 0, cx], [0, fy, cy], [0, 0, 1]]} if n % 2 else {"fl_x": fx + n, "fl_y": fy, "cx": cx}
        text(scene / "intrinsics" / f"{n:03d}.json", json.dumps({**tree, "cy": cy, "w": 64, "h": 48}))
    (scene / "depth" / "001.png").unlink()
    found = source("rgbd", scene, depth_kind="z")
    assert [found[i].views[0].camera.fx for i in range(len(found))] == [60, 62, 63]
    assert "1 images without depth map and pose are left out" in caplog.text
    (scene / "intrinsics" / "002.json").write_text(json.dumps({"K": [[60, 0, 1]]}))
    with pytest.raises(BadRecord, match=r"intrinsics/002\.json: expected a 3 x 3 matrix or fx fy cx cy, got 3 numb"):
        found[1]


def test_tum(tmp_path):
    found = source("rgbd", own_data.tum(tmp_path / "desk"), depth_kind="z")
    assert len(found) == 3
    for n, pose in enumerate(own_data.poses(3)):
        np.testing.assert_allclose(found[n].views[0].world_T_cam, pose, atol=1e-7)
        check_depth(drawn(found[n]), [pose], 0.002)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda scene: (scene / "intrinsics.txt").unlink(), "no intrinsics for .*; write K .3 x 3. into"),
        (lambda scene: [p.unlink() for p in (*(scene / "depth").iterdir(), *(scene / "pose").iterdir())], "no image"),
        (lambda scene: (scene / "rgb").rename(scene / "photos"), r"has no rgb/, color/ beside depth/"),
    ],
)
def test_what_a_user_must_mend_in_a_folder(tmp_path, change, why):
    folder = own_data.rgbd(tmp_path / "house", scenes=1)
    change(folder / "room0")
    with pytest.raises(UserError, match=why):
        source("rgbd", folder, depth_kind="z")


def test_what_is_broken_of_a_frame_sets_it_aside(tmp_path):
    scene = own_data.rgbd(tmp_path / "house", scenes=1) / "room0"
    text(scene / "pose" / "000.txt", " ".join(map(str, range(16))))
    png(scene / "depth" / "001.png", np.zeros((24, 32, 3), np.uint8))
    (scene / "rgb" / "002.jpg").write_bytes(b"no image")
    text(scene / "intrinsics.txt", own_data.matrix((0.9, 1.2, 0.5, 0.5)))
    found = source("rgbd", scene, depth_kind="z")
    with pytest.raises(BadRecord, match=r"intrinsics\.txt: .*implausible field of view"):
        found[3]
    text(scene / "intrinsics.txt", own_data.matrix())
    with pytest.raises(BadRecord, match=r"pose/000\.txt: the last row of the camera pose"):
        found[0]
    with pytest.raises(BadRecord, match=r"depth/001\.png: expected a PNG of one channel"):
        drawn(found[1])
    with pytest.raises(BadRecord, match=r"rgb/002\.jpg: no JPEG, PNG, WEBP file"):
        found[2]
    assert found[3].scene == "room0"


def test_paths_of_lists_stay_inside(tmp_path):
    folder = own_data.tum(tmp_path / "desk")
    text(folder / "rgb.txt", "0.0 ../secret.png")
    with pytest.raises(UserError, match="leaves the folder"):
        source("rgbd", folder, depth_kind="z")


# WAI


def test_wai_scenes_in_place(tmp_path):
    folder = own_data.wai(tmp_path / "wai")
    frames = source("wai", folder)
    assert (len(frames), frames[4].id, frames[4].scene, frames[4].metric) == (6, "scene1/0001", "scene1", True)
    check_depth(drawn(frames[4]), [own_data.poses(3, 1)[1]], 0.002)
    pairs = source("wai", folder, task="correspondence", covisibility_min=0.25)
    assert [pairs[i].id for i in range(len(pairs))] == ["scene0/0000+0001", "scene1/0000+0001"]
    # Divided by the views' own values: 0.6 / 0.8.
    assert pairs[0].covisibility == pytest.approx(0.75)
    check_matches(drawn(pairs[1]), own_data.poses(3, 1)[:2])
    assert len(source("wai", folder, task="pose", covisibility_min=0.2)) == 6
    with pytest.raises(UserError, match=r"have no pair with a covisibility above 0\.9"):
        source("wai", folder, task="pose", covisibility_min=0.9)


def test_wai_masks_tell_where_labels_are(tmp_path):
    folder = own_data.wai(tmp_path / "wai")
    left, right = (drawn(source("wai", folder, mask=mask)[0]).depth[0].points_px for mask in ("skymask", "-skymask"))
    assert left[:, 0].max() < 32 <= right[:, 0].min()


def test_wai_scale_lists_and_errors(tmp_path):
    folder = own_data.wai(tmp_path / "wai", scale="colmap", matrices=False)
    with pytest.raises(UserError, match="no frame with metric depth"):
        source("wai", folder)
    with pytest.raises(UserError, match="no covisibility matrix; set gaps"):
        source("wai", folder, task="pose")
    pairs = source("wai", folder, task="pose", gaps=(2,))
    record = drawn(pairs[0])
    # Up to scale there are matches, and no depths in metres.
    assert (len(pairs), record.metric, record.depth) == (2, False, ())
    assert len(record.matches.points0_px)
    for name, content in (("a.txt", "scene1\n"), ("a.json", '["scene1", "gone"]')):
        (tmp_path / name).write_text(content)
        listed = source("wai", folder, task="pose", gaps=(2,), scenes=str(tmp_path / name))
        assert [listed[i].scene for i in range(len(listed))] == ["scene1"]
    meta = folder / "scene0" / "scene_meta.json"
    meta.write_text(meta.read_text().replace("PINHOLE", "OPENCV_FISHEYE"))
    with pytest.raises(UserError, match="camera_model OPENCV_FISHEYE has distortion"):
        source("wai", folder, task="pose", gaps=(2,))
    meta.write_text(meta.read_text().replace("OPENCV_FISHEYE", "PINHOLE").replace("images/0000.jpg", "../../x.jpg"))
    with pytest.raises(UserError, match="leaves the folder"):
        source("wai", folder, task="pose", gaps=(2,))[0]


def test_split_lists_as_numpy_pickles_them(tmp_path):
    path = tmp_path / "a_scene_list_train.npy"
    np.save(path, np.array(["scene1", "scene with ü"], object), allow_pickle=True)
    assert name_lists.read_names(path) == ["scene1", "scene with ü"]
    np.save(path, np.array(["a", "bc"]))
    assert name_lists.read_names(path) == ["a", "bc"]
    np.save(path, np.array([1, 2]))
    with pytest.raises(UserError, match=r"train\.npy: expected a list of names"):
        name_lists.read_names(path)
    np.save(path, np.array([len, "a"], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"train\.npy: its pickle holds more than .* one name a line into a \.txt"):
        name_lists.read_names(path)


# COLMAP


@pytest.mark.parametrize("binary", [False, True])
def test_colmap_models(tmp_path, binary):
    folder = own_data.colmap(tmp_path / "capture", binary=binary)
    pairs = source("colmap", folder, task="correspondence", covisibility_min=0.3)
    record = pairs[0]
    assert record.id == "capture/walk/0.jpg+walk/1.jpg"
    assert (record.metric, record.depth, record.scene) == (False, (), "capture")
    check_matches(record, own_data.poses(6)[:2])
    assert 0.3 <= record.covisibility <= 1
    for view, pose in zip(record.views, own_data.poses(6)):
        np.testing.assert_allclose(view.world_T_cam, pose, atol=1e-6)
        c = view.camera
        assert (c.fx, c.fy, c.cx, c.cy) == pytest.approx(own_data.K)
    metric = source("colmap", folder, depth_scale=2.0)
    assert len(metric) == 6
    (label,) = metric[2].depth
    assert metric[2].metric
    expected = 2 * own_data.truth(own_data.poses(6)[2], label.points_px)
    assert np.median(np.abs(label.depth_m / expected - 1)) < 0.02
    np.testing.assert_allclose(metric[2].views[0].world_T_cam[:3, 3], 2 * own_data.poses(6)[2][:3, 3], atol=1e-6)


def test_what_a_user_must_mend_in_a_capture(tmp_path):
    folder = own_data.colmap(tmp_path / "capture")
    with pytest.raises(UserError, match="no depth in metres; set depth_scale"):
        source("colmap", folder)
    cameras = folder / "sparse" / "0" / "cameras.txt"
    cameras.write_text("3 SIMPLE_RADIAL 64 48 60 31 24 0.1\n")
    with pytest.raises(UserError, match="SIMPLE_RADIAL has distortion; run colmap image_undistorter"):
        source("colmap", folder, task="pose")
    cameras.write_text("3 PINHOLE 64 48 60\n")
    with pytest.raises(UserError, match=r"cameras\.txt: not a readable COLMAP file \(PINHOLE has 4 parameters"):
        source("colmap", folder, task="pose")
    binary = own_data.colmap(tmp_path / "binary", binary=True)
    images = binary / "sparse" / "0" / "images.bin"
    images.write_bytes(images.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"images\.bin: not a readable COLMAP file"):
        source("colmap", binary, task="pose")
    bare = own_data.colmap(tmp_path / "bare")
    (bare / "images").rename(bare / "pictures")
    with pytest.raises(UserError, match="no folder of images for"):
        source("colmap", bare, task="pose")


# RealEstate10K and GTA-SfM


def test_realestate10k(tmp_path):
    folder = own_data.realestate10k(tmp_path / "re10k")
    found = source("realestate10k", folder, task="pose", gaps=(1, 2), images=str(folder / "frames"))
    # The first frame of a clip has no image.
    assert len(found) == 2 * (2 + 1)
    record = found[0]
    assert (record.id, record.metric) == ("0000000000000000/133100+166100", False)
    for view, pose in zip(record.views, own_data.poses(4)[1:3]):
        np.testing.assert_allclose(view.world_T_cam, pose, atol=1e-9)
        c = view.camera
        assert (c.fx, c.fy, c.cx, c.cy) == pytest.approx(own_data.K)
    text(folder / f"{0:016x}.txt", "https://x\n1 2 3\n")
    with pytest.raises(BadRecord, match="expected rows of 19 numbers"):
        found[0]


def test_gta_sfm(tmp_path):
    pytest.importorskip("h5py")
    folder = own_data.gta_sfm(tmp_path / "gta")
    frames = source("gta_sfm", folder)
    assert len(frames) == 6
    check_depth(drawn(frames[1]), [own_data.poses(3)[1]], 1e-3)
    record = source("gta_sfm", folder, task="correspondence", gaps=(1,))[2]
    assert record.id == "20190101_000000/0+1"
    check_matches(drawn(record), own_data.poses(3, 1)[:2])
    c = record.views[0].camera
    assert (c.fx, c.fy, c.cx, c.cy) == own_data.K
    (folder / "20190100_000000.hdf5").write_bytes(b"no hdf5")
    with pytest.raises(UserError, match="not a readable HDF5 file"):
        source("gta_sfm", folder)


# Fields and parts


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "rgbd"}, "depth_kind is ''; choose one of"),
        ({"kind": "rgbd", "depth_kind": "z", "task": "pose"}, "gaps is empty, but task 'pose' needs pairs"),
        ({"kind": "records", "gaps": (1,)}, r"gaps is \(1,\), but kind 'records' does not take it \(only rgbd, wai"),
        ({"kind": "depthlm", "depth_kind": "z", "task": "pose"}, "task is 'pose'; kind 'depthlm' has labels for depth"),
        ({"kind": "conversations"}, "task is 'depth'; kind 'conversations' has labels for conversation, objects"),
        ({"kind": "conversations", "task": "objects", "flip": 0.5}, "flip is 0.5; what a conversation says of left"),
        ({"kind": "wai", "part": "test"}, "part is 'test'; choose one of"),
        ({"kind": "wai", "held_out": 1.0}, r"held_out is 1\.0; a share above 0 and below 1"),
        ({"kind": "colmap", "depth_scale": -1.0}, r"depth_scale is -1\.0; metres a unit"),
        ({"kind": "realestate10k", "task": "pose"}, r"gaps is \(\), but the kind needs it"),
        ({"kind": "nerf"}, "kind is 'nerf'; choose one of"),
    ],
)
def test_fields_are_those_of_the_kind(fields, why):
    with pytest.raises(UserError, match=f"component 'a': {why}"):
        check_component("a", {"path": "x", **fields})


def test_parts_go_by_scene_and_change_little():
    scenes = [f"s{n // 3}" for n in range(60)]
    train, held = (set(items.part_of(scenes, part, 0.2, "a")) for part in ("train", "held_out"))
    assert train | held == set(range(60))
    assert not {scenes[i] for i in train} & {scenes[i] for i in held}
    assert len(held) == 12
    assert items.part_of(["a", "b"], "held_out", 0.01, "a") in ([0], [1])
    with pytest.raises(UserError, match="cannot be parted"):
        items.part_of(["a"], "train", 0.5, "a")


def test_in_place_records_become_samples(settings, tmp_path):
    folder = own_data.rgbd(tmp_path / "house")
    same = {"path": str(folder), "kind": "rgbd", "depth_kind": "z", "protocol": "short", "questions": 5}
    for task, gaps in (("depth", ()), ("correspondence", (1,)), ("pose", (1,))):
        fields = {**same, "task": task, "gaps": gaps}
        component = Component("own", fields, make_source("own", fields), settings)
        sample, again, other = (component.sample(2, (0, key), "x") for key in (0, 0, 1))
        assert sample.tokens.tolist() == again.tokens.tolist()
        assert len(sample.examples) == (4 if task == "pose" else 5)
        assert task == "pose" or sample.tokens.tolist() != other.tokens.tolist()
    far = Component("own", {**fields, "covisibility_min": 0.99}, make_source("own", fields), settings)
    assert "its covisibility, " in far.sample(2, (0, 0), "x").reason
