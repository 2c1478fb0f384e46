import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.builders import files, pairs
from vlm3_jax.builders.paralleldomain4d import ParallelDomain4D

# Two moments of two cameras.
POSES = (*pairs.WALK, pairs.world.pose(0.1, 0.05, 0.3, yaw=1, roll=2))
NAMES = ("000000_camera0", "000000_yaw-60", "000001_camera0", "000001_yaw-60")
CAMERAS = dict(zip(("camera0", "yaw-60"), pairs.walk(), strict=False))
FRAMES = {
    name: pairs.turned([CAMERAS[name.split("_")[1]]], world_T_cam=pose)[0]
    for name, pose in zip(NAMES, POSES, strict=True)
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paralleldomain4d") / "scene_000001"
    data, samples = [], {}
    # Only the axes of the world are others: left, forward, up.
    own = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    for name, frame in FRAMES.items():
        moment, camera = name.split("_")
        file = f"{int(moment) * 10 + 5:018d}"
        seen, pose = frame.seen(), own @ frame.world_T_cam
        files.png(folder / f"rgb/{camera}/{file}.png", seen.rgb)
        (folder / f"depth/{camera}").mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"depth/{camera}/{file}.npz", data=np.where(np.isfinite(seen.z), seen.z, 550.0))
        x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
        image = {"filename": f"rgb/{camera}/{file}.png", "height": frame.height, "width": frame.width, "channels": 3}
        image["annotations"] = {"6": f"depth/{camera}/{file}.npz"}
        image["pose"] = {
            "rotation": {"qw": w, "qx": x, "qy": y, "qz": z},
            "translation": dict(zip("xyz", pose[:3, 3].tolist(), strict=True)),
        }
        data.append({"key": name, "id": {"name": camera, "log": ""}, "datum": {"image": image}})
        samples.setdefault(moment, []).append(name)
    rows = [{"calibration_key": "cal", "datum_keys": keys[::-1]} for keys in samples.values()]
    files.dump(folder / "scene_6e4206.json", {"data": data[::-1], "samples": rows})
    intrinsics = [{"fx": f.fx, "fy": f.fy, "cx": f.cx + 0.5, "cy": f.cy + 0.5, "skew": 0} for f in CAMERAS.values()]
    pose = {"rotation": {"qw": 1, "qx": 0, "qy": 0, "qz": 0}, "translation": {"x": 0, "y": 0, "z": 0}}
    calibration = {"names": list(CAMERAS), "intrinsics": intrinsics, "extrinsics": [pose, pose]}
    files.dump(folder / "calibration/cal.json", calibration)
    return folder.parent


def test_gives_back_depth_cameras_and_poses(raw):
    split = "train" if ParallelDomain4D().frames(raw, "train") else "val"
    records, skipped = pairs.build(ParallelDomain4D(), raw, split)
    assert not skipped
    assert len(records) == 6
    pairs.check(records, FRAMES)
