import numpy as np
import pytest

from tests.builders import files, pairs, truth, world
from tests.builders.test_scannetpp import FISHEYE, SCENE, WORLD_T_SCENE, _fisheye_rays
from vlm3_jax.builders.scannetpp_pairs import TEST, VAL, ScanNetppPairs

WIDTH, HEIGHT = 96, 72
PHOTOS = {f"DSC0003{n}": pose for n, pose in enumerate(pairs.WALK, start=1)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("scannetpp_pairs")
    for scene in (SCENE, TEST[0], VAL[0]):
        folder, frames = root / "data" / scene / "dslr", []
        for name, world_T_cam in PHOTOS.items():
            seen = world.render(_fisheye_rays(), world_T_cam)
            files.jpeg(folder / f"resized_images/{name}.JPG", seen.rgb)
            files.png(folder / f"render_depth/{name}.png", files.steps(seen.z, 1000))
            matrix = np.linalg.inv(WORLD_T_SCENE) @ world_T_cam @ np.diag([1.0, -1, -1, 1])
            frames.append({"file_path": f"{name}.JPG", "transform_matrix": matrix.tolist(), "is_bad": False})
        frames.append(frames[0] | {"file_path": "DSC00039.JPG", "is_bad": True})
        tree = FISHEYE | {"w": WIDTH, "h": HEIGHT, "camera_model": "OPENCV_FISHEYE"}
        files.dump(folder / "nerfstudio/transforms.json", tree | {"frames": frames[:0:-1], "test_frames": frames[:1]})
    files.text(root / "splits/nvs_sem_train.txt", f"{SCENE}\n{TEST[0]}\n")
    files.text(root / "splits/nvs_sem_val.txt", f"{VAL[0]}\n")
    return root


def test_pairs_give_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(ScanNetppPairs(), raw)
    assert len(records) == 3
    assert len(skipped) == 3
    assert all("is_bad" in reason for reason in skipped.values())
    for key, record in records.items():
        pair = [
            pairs.world_frame(record, view, FISHEYE, PHOTOS[name]) for view, name in enumerate(key[-17:].split("-"))
        ]
        truth.check_pose(record, pair)
        truth.all_fail(lambda one, pair=pair: truth.check_pose(one, pair), truth.wrong_poses(record))
        for view, frame in enumerate(pair):
            # The nearest pixel of the fisheye: up to one of its pixels away.
            truth.check_depth(record, frame, 2e-3, view, spread_px=1.5, share=0.97, least=0.3)
            truth.check_image(record, frame, view, tolerance=6)
        assert record.covisibility > 0.25


def test_scenes_are_split_as_mapanything_splits_them(raw):
    scenes = {split: {i.scene for i in ScanNetppPairs().frames(raw, split)} for split in ScanNetppPairs.splits}
    assert scenes == {"train": {SCENE}, "val": {VAL[0]}, "test": {TEST[0]}}
    assert len(set(TEST)) == len(set(VAL)) == 30
    assert not set(TEST) & set(VAL)
