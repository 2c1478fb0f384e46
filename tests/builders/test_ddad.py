"""DDAD in DGP's layout: poses of each sensor at its own time; scenes that are not there; and a real scene."""

import itertools
import json

import numpy as np
import pytest

from tests.builders import files, truth, vehicle
from vlm3_jax.builders import common
from vlm3_jax.builders.ddad import CAMERAS, DDAD
from vlm3_jax.builders.readers import dgp
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.pose import from_quaternion, inverse

YAW = dict(zip(CAMERAS, (0, 40, -40, 100, -100, 180), strict=True))
AFTER_S = 0.02
TOLERANCE_M, SHARE = 2e-3, 0.9


def _frame(name: str) -> truth.Frame:
    world_T_cam = vehicle.world_T_vehicle(AFTER_S) @ vehicle.mounted(YAW[name])
    return truth.Frame(54.0, 53.0, 32.5, 23.1, 64, 48, world_T_cam)


FRAMES = {name: _frame(name) for name in CAMERAS}


def _pose(matrix) -> dict:
    turn = dict(zip(("qw", "qx", "qy", "qz"), vehicle.quaternion(matrix).tolist(), strict=True))
    return {"rotation": turn, "translation": dict(zip("xyz", matrix[:3, 3].tolist(), strict=True))}


def write(root, pose=vehicle.map_T_vehicle, index="ddad.json", keep=CAMERAS):
    """One scene of one sample; the index names a scene that is not there too."""
    scene = root / "000150"
    names = ["LIDAR", *CAMERAS]
    data = [
        {
            "key": f"key{name}",
            "id": {"name": name},
            "datum": {
                "image": {
                    "filename": f"rgb/{name}/15.jpg",
                    "width": 64,
                    "height": 48,
                    "annotations": {},
                    "pose": _pose(pose(AFTER_S) @ vehicle.mounted(YAW[name])),
                }
            },
        }
        for name in keep
    ]
    cloud = {"filename": "point_cloud/LIDAR/15.npz", "point_format": ["X", "Y", "Z", "INTENSITY"]}
    cloud["pose"] = _pose(pose(0) @ vehicle.VEHICLE_T_LIDAR)
    data.append({"key": "keyLIDAR", "id": {"name": "LIDAR"}, "datum": {"point_cloud": cloud}})
    sample = {"calibration_key": "c0", "datum_keys": [one["key"] for one in data], "id": {}}
    files.dump(scene / "scene_ab.json", {"name": "", "data": data[::-1], "samples": [sample]})
    none = {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0, "skew": 0.0}
    intrinsics = [none] + [{"fx": 54.0, "fy": 53.0, "cx": 32.5, "cy": 23.1, "skew": 0.0}] * len(CAMERAS)
    files.dump(scene / "calibration" / "c0.json", {"names": names, "intrinsics": intrinsics, "extrinsics": []})
    listed = {"filenames": ["000199/scene_cd.json", "000150/scene_ab.json"]}
    files.dump(root / index, {"metadata": {}, "scene_splits": {"0": {"filenames": []}, "1": listed}})
    points = vehicle.sweep(0)
    (scene / "point_cloud" / "LIDAR").mkdir(parents=True)
    np.savez(scene / "point_cloud" / "LIDAR" / "15.npz", data=np.concatenate([points, points[:, :1]], -1))
    for name in keep:
        files.jpeg(scene / "rgb" / name / "15.jpg", FRAMES[name].seen().rgb)
    return root


def _built(root, **options) -> dict:
    builder, found = DDAD(common.Options(**options)), {}
    for item in builder.frames(root, "val"):
        try:
            found[item.key] = builder.record(root, item)
        except common.Skip as skip:
            found[item.key] = skip
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(tmp_path_factory.mktemp("ddad"))


@pytest.mark.parametrize("name", CAMERAS)
def test_gives_back_the_world(root, name):
    record, frame = _built(root)[f"000150/000000/{name}"], FRAMES[name]

    def check(record):
        assert truth.check_depth(record, frame, TOLERANCE_M, spread_px=0.5, share=SHARE) > 200

    check(record)
    assert (record.depth[0].kind, record.scene) == ("z", "000150")
    truth.check_image(record, frame)
    truth.check_pose(record, [frame], world_T_own=vehicle.WORLD_T_MAP)
    truth.all_fail(check, truth.wrong_depths(record))


@pytest.mark.parametrize(
    "pose",
    [lambda seconds: vehicle.map_T_vehicle(0), lambda seconds: np.linalg.inv(vehicle.map_T_vehicle(seconds))],
    ids=["no motion between lidar and image", "inverted poses"],
)
def test_files_that_mean_something_else_fail_the_check(tmp_path, pose):
    record = _built(write(tmp_path, pose))["000150/000000/CAMERA_05"]
    with pytest.raises(AssertionError):
        truth.check_depth(record, FRAMES["CAMERA_05"], TOLERANCE_M, spread_px=0.5, share=SHARE)


def test_a_scene_that_is_not_there_is_counted(root):
    found = _built(root)
    assert list(found) == sorted(found)
    assert len(found) == len(CAMERAS) + 1
    assert "000199/scene_cd.json" in found["000199"].reason


def test_as_depthlm_stored_it_the_last_point_stays(root):
    ours, theirs = (_built(root, depthlm=flag)["000150/000000/CAMERA_01"].depth[0] for flag in (False, True))
    assert ours.kind == theirs.kind == "z"
    assert not np.array_equal(ours.points_px, theirs.points_px)
    assert np.median(ours.depth_m) == pytest.approx(np.median(theirs.depth_m), rel=0.05)


def test_other_names_of_the_index_and_a_split_that_is_empty(tmp_path):
    write(tmp_path, index="scene_dataset_v1.0.json", keep=CAMERAS[:3])
    assert len(_built(tmp_path)) == 4
    assert DDAD().frames(tmp_path, "train") == []


def test_damage_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "000150" / "point_cloud" / "LIDAR" / "15.npz").write_bytes(b"PK nothing")
    with pytest.raises(BadRecord, match=r"15\.npz"):
        _built(tmp_path)
    files.dump(tmp_path / "000150" / "scene_ab.json", {"data": [{}], "samples": []})
    with pytest.raises(UserError, match="scene_ab"):
        _built(tmp_path)
    files.dump(tmp_path / "ddad.json", {"scene_splits": {}})
    with pytest.raises(UserError, match="split 'val'"):
        _built(tmp_path)
    (tmp_path / "ddad.json").unlink()
    with pytest.raises(UserError, match="index of scenes"):
        _built(tmp_path)


def test_pickled_points_are_not_read(tmp_path):
    np.savez(tmp_path / "points.npz", data=np.array([{"a": 1}], object))
    with pytest.raises(BadRecord, match="points"):
        dgp.points(tmp_path / "points.npz", "points")


def test_a_real_scene(samples):
    found = _built(samples / "dgp_sample")
    records = [value for value in found.values() if not isinstance(value, common.Skip)]
    assert len(records) == 9
    assert len(found) == 10
    for record in records:
        label = record.depth[0]
        assert len(label.depth_m) > 1000
        assert 1 < np.median(label.depth_m) < 100


def _boxes(path) -> dict:
    return {row["instance_id"]: row["box"] for row in json.loads(path.read_bytes())["annotations"]}


def _corners(box) -> np.ndarray:
    """The corners of a 3-D box in its sensor's frame [4, 8], homogeneous."""
    turn, place = box["pose"]["rotation"], box["pose"]["translation"]
    pose = from_quaternion([turn[f"q{axis}"] for axis in "wxyz"], [place[axis] for axis in "xyz"])
    half = np.array([box[side] / 2 for side in ("length", "width", "height")])
    return pose @ np.array([[*(half * signs), 1] for signs in itertools.product((-1, 1), repeat=3)]).T


def test_a_real_scene_s_boxes_fall_where_its_authors_drew_them(samples):
    """The lidar's 3-D boxes, seen by the records' cameras from their poses, are the 2-D boxes to the pixel."""
    root, records = samples / "dgp_sample", _built(samples / "dgp_sample")
    compared = 0
    for number, data in dgp.samples(next(root.glob("scene_01/scene_*.json"))):
        cloud, stem = data["LIDAR"], data["LIDAR"].file.rpartition("/")[2].removesuffix(".npz")
        solid = _boxes(root / "scene_01" / "bounding_box_3d" / "LIDAR" / f"{stem}.json")
        for name in set(data) - {"LIDAR"}:
            view = records[f"scene_01/{number:06d}/{name}"].views[0]
            flat = _boxes(root / "scene_01" / data[name].annotations["0"])
            for key in flat.keys() & solid.keys():
                corners = (inverse(view.world_T_cam) @ cloud.world_T_sensor @ _corners(solid[key]))[:3].T
                if corners[:, 2].min() < 1:
                    continue
                pixels = np.clip(view.camera.project(corners), 0, (1936, 1216))
                left, top, width, height = (flat[key][side] for side in "xywh")
                # Drawn boxes are whole pixels.
                drawn = np.array([left, top, left + width, top + height]) + 0.5
                np.testing.assert_allclose([*pixels.min(0), *pixels.max(0)], drawn, atol=0.55)
                compared += 1
    assert compared > 100
