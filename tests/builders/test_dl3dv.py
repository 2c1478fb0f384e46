import dataclasses
import shutil

import numpy as np
import pytest

from tests.builders import files, pairs, truth, world
from vlm3_jax.builders.dl3dv import Dl3dv
from vlm3_jax.errors import UserError

TRAIN, VAL, PORTRAIT, CLEAN = "a" * 64, "b" * 64, "c" * 64, "d" * 64
LENS = {"k1": -0.08, "k2": 0.02, "p1": 0.002, "p2": -0.001}
# Four times as large in transforms.json as the images that are there.
TIMES = 4
CAMERA = {"fx": 60.0, "fy": 61.0, "cx": 31.6, "cy": 23.3}
FRAMES = {f"frame_{n:05d}": frame for n, frame in enumerate(pairs.walk(**CAMERA), start=1)}


def write(folder, lens, width=pairs.WIDTH, height=pairs.HEIGHT) -> None:
    rows = []
    for name, frame in FRAMES.items():
        rays = world.pinhole(frame.fx, frame.fy, frame.cx, frame.cy, width, height, world.opencv(**lens))
        files.png(folder / f"images_4/{name}.png", world.render(rays, frame.world_T_cam).rgb)
        pose = np.diag([0.5, 0.5, 0.5, 1]) @ frame.world_T_cam @ np.diag([1.0, -1, -1, 1])
        pose[:3, :3] *= 2
        rows.append({"file_path": f"images/{name}.png", "transform_matrix": pose.tolist(), "colmap_im_id": 7})
    tree = {"w": TIMES * width, "h": TIMES * height, "camera_model": "OPENCV", "frames": rows[::-1], **lens}
    tree |= {"fl_x": TIMES * CAMERA["fx"], "fl_y": TIMES * CAMERA["fy"]}
    tree |= {"cx": TIMES * (CAMERA["cx"] + 0.5), "cy": TIMES * (CAMERA["cy"] + 0.5)}
    files.dump(folder / "transforms.json", tree)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dl3dv")
    write(folder / "1K" / TRAIN, LENS)
    write(folder / "1K" / VAL, LENS)
    write(folder / "2K" / CLEAN, {})
    write(folder / "2K" / PORTRAIT, {}, width=40, height=64)
    files.text(folder / "benchmark-meta.csv", f"hash,scene\n{VAL},outdoor\n")
    return folder


def up_to_scale(frames):
    return [
        dataclasses.replace(
            f, world_T_cam=np.vstack([np.hstack([f.world_T_cam[:3, :3], f.world_T_cam[:3, 3:] / 2]), [[0, 0, 0, 1]]])
        )
        for f in frames
    ]


def test_images_without_distortion_are_kept(raw):
    records, skipped = pairs.build(Dl3dv(), raw)
    assert not skipped
    clean = {key: record for key, record in records.items() if CLEAN in key}
    assert len(clean) == 3
    for key, record in clean.items():
        pair = [FRAMES[name] for name in pairs.names(key, FRAMES)]
        truth.check_pose(record, up_to_scale(pair))
        truth.all_fail(lambda one, pair=pair: truth.check_pose(one, up_to_scale(pair)), truth.wrong_poses(record))
        truth.check_camera(record, pair[1], 1)
        truth.check_image(record, pair[1], 1)
        name = pairs.names(key, FRAMES)[1]
        assert record.views[1].image.data == (raw / "2K" / CLEAN / f"images_4/{name}.png").read_bytes()


def test_distortion_is_removed(raw):
    records, _ = pairs.build(Dl3dv(), raw)
    bent = {key: record for key, record in records.items() if TRAIN in key}
    assert len(bent) == 3
    for key, record in bent.items():
        pair = [FRAMES[name] for name in pairs.names(key, FRAMES)]
        truth.check_pose(record, up_to_scale(pair))
        for view, frame in enumerate(pair):
            camera = record.views[view].camera
            assert (camera.fx, camera.fy) == (CAMERA["fx"], CAMERA["fy"])
            own = dataclasses.replace(frame, **{f: getattr(camera, f) for f in ("cx", "cy", "width", "height")})

            def difference(own, record=record, view=view):
                return np.abs(record.views[view].image.load().astype(float) - own.seen().rgb).mean()

            found = difference(own)
            for wrong in ({"cx": own.cx + 0.5}, {"cy": own.cy - 0.5}, {"fx": own.fx * 1.02}):
                assert difference(dataclasses.replace(own, **wrong)) > found


def test_scenes_are_split_as_published(raw):
    scenes = {split: {item.scene for item in Dl3dv().frames(raw, split)} for split in ("train", "val")}
    assert scenes == {"train": {f"1K_{TRAIN}", f"2K_{CLEAN}", f"2K_{PORTRAIT}"}, "val": {f"1K_{VAL}"}}
    with pytest.raises(UserError, match=r"benchmark-meta\.csv: not there"):
        Dl3dv().frames(raw / "1K", "train")


def test_there_is_no_depth_and_no_scale(raw):
    records, _ = pairs.build(Dl3dv(), raw)
    for record in records.values():
        assert not record.depth_maps
        assert not record.metric
        assert record.covisibility is None


@pytest.mark.parametrize(("scene", "lens"), [(f"1K/{TRAIN}", LENS), (f"2K/{CLEAN}", {})])
def test_points_of_the_model_are_matches(raw, tmp_path, scene, lens):
    """Of a model of the full size; a point far outside of the images and those that one image sees are no matches."""
    shutil.copytree(raw / scene, tmp_path / scene)
    files.text(tmp_path / "benchmark-meta.csv", "")
    places = pairs.world.pixels(9, 7).reshape(-1, 2) * 6 + 5
    first = next(iter(FRAMES.values()))
    seen = first.seen(places)
    z = np.where(np.isfinite(seen.z), seen.z, 1.0)
    points = (first.rays(places) * z[:, None]) @ first.world_T_cam[:3, :3].T + first.world_T_cam[:3, 3]
    lines = []
    for n, (name, frame) in enumerate(FRAMES.items()):
        cam_T_world = np.linalg.inv(frame.world_T_cam)
        local = points @ cam_T_world[:3, :3].T + cam_T_world[:3, 3]
        bent = world.opencv(**lens)(local[:, :2] / local[:, 2:])
        pixel = (bent * [frame.fx, frame.fy] + [frame.cx, frame.cy] + 0.5) * TIMES
        ids = np.where(np.isfinite(seen.z) & (local[:, 2] > 0), np.arange(len(points)), -1)
        lines.append(f"{n + 1} 1 0 0 0 0 0 0 1 images/{name}.png")
        lines.append(" ".join(f"{x:.6f} {y:.6f} {i}" for (x, y), i in zip(pixel, ids, strict=True)) + f" 5 5 {900 + n}")
    folder = tmp_path / scene / "colmap/sparse/0"
    files.text(folder / "images.txt", "\n".join(lines) + "\n")
    files.text(folder / "cameras.txt", f"1 PINHOLE {TIMES * pairs.WIDTH} {TIMES * pairs.HEIGHT} 240 244 128 96\n")
    records, skipped = pairs.build(Dl3dv(), tmp_path)
    assert not skipped
    assert len(records) == 3
    for key, record in records.items():
        found = record.matches
        assert len(found.points0_px) > 20
        assert 0.5 < record.covisibility <= 1
        cameras = [view.camera for view in record.views]
        frames = [
            dataclasses.replace(FRAMES[name], **{f: getattr(c, f) for f in ("cx", "cy", "width", "height")})
            for name, c in zip(pairs.names(key, FRAMES), cameras, strict=True)
        ]
        # The same surface point seen from the other camera; a whole pixel is up to half of one from the point.
        z = frames[0].seen(found.points0_px).z
        z = np.where(np.isfinite(z), z, 1.0)
        at = (frames[0].rays(found.points0_px) * z[:, None]) @ frames[0].world_T_cam[:3, :3].T
        cam_T_world = np.linalg.inv(frames[1].world_T_cam)
        local = (at + frames[0].world_T_cam[:3, 3]) @ cam_T_world[:3, :3].T + cam_T_world[:3, 3]
        expected = local[:, :2] / local[:, 2:] * [cameras[1].fx, cameras[1].fy] + [cameras[1].cx, cameras[1].cy]
        error = np.abs(found.points1_px - expected).max(-1)
        assert np.median(error) < 0.15
        assert np.median(np.abs(found.points1_px + 0.5 - expected).max(-1)) > 0.3
