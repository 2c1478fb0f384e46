"""nuScenes: lidar points in the images of six cameras."""

import pathlib

import numpy as np

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import lidar, rigid
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.formats.json_items import rows
from vlm3_jax.pose import from_quaternion, inverse
from vlm3_jax.records import Record, View

CAMERAS = ("CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")
LIDAR = "LIDAR_TOP"
# The scenes of v1.0-mini are also in v1.0-trainval; the published evaluation is on some of them.
MINI_SCENES = {f"scene-{n:04d}" for n in (61, 103, 553, 655, 757, 796, 916, 1077, 1094, 1100)}
# The published evaluation takes the last twentieth of the mini samples, in the order of sample.json.
BENCH_SHARE = 0.95


class NuScenes(common.Builder):
    """Each sample (key frame) gives six records: the points of its lidar sweep in one camera's image.

    Points go lidar -> ego(t_lidar) -> global -> ego(t_image) -> camera, as in the devkit; quaternions are w x y z.
    Images are rectified by the publisher. Poses are the ego vehicle's at the image's time, in the map of the scene's
    city. With `depthlm` points skip the ego poses and pixels are truncated, as DepthLM's curators did; both hold z.
    Splits: train is v1.0-trainval without the mini scenes, mini is v1.0-mini, bench its last 5 % of samples (126
    images).
    """

    name = "nuscenes"
    title = "nuScenes"
    folder = "depth"
    splits = ("train", "mini", "bench")
    held_out = "bench"
    layout = "v1.0-{trainval,mini}/*.json, samples/{CAM_*/*.jpg, LIDAR_TOP/*.pcd.bin}"
    labels = "lidar points, z in metres; camera poses in the map"
    licence = "CC BY-NC-SA 4.0, nuscenes.org"
    checked = "fixture"
    doubts = ("the pixel centre of (0, 0)", "moving objects are where they were at the sweep's time (up to 50 ms)")
    test = "tests/builders/test_nuscenes.py"
    honours_depthlm = True

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """Samples times cameras, each with its files, intrinsics and the four poses of the chain."""
        folder = raw / ("v1.0-trainval" if split == "train" else "v1.0-mini")
        scenes = {row["token"]: row["name"] for row in rows(folder / "scene.json")}
        samples = [(row["token"], scenes[row["scene_token"]]) for row in rows(folder / "sample.json")]
        if split == "train":
            samples = [sample for sample in samples if sample[1] not in MINI_SCENES]
        if split == "bench":
            samples = samples[int(BENCH_SHARE * len(samples)) :]
        key_frames = _key_frames(folder, {token for token, _ in samples})
        items = []
        for token, scene in samples:
            sweep = key_frames.get((token, LIDAR))
            for camera in CAMERAS:
                image = key_frames.get((token, camera))
                items.append(common.Item(f"{scene}/{token}/{camera}", scene, _data(sweep, image)))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One image with the points of its sample's sweep."""
        data = item.data
        if not data:
            raise common.Skip("the sample has no image of this camera, or no lidar sweep")
        numbers = np.frombuffer(data["numbers"])
        lidar_sensor, lidar_ego, sensor, ego = (from_quaternion(p[:4], p[4:]) for p in numbers[9:].reshape(4, 7))
        stored = common.image(raw / data["image"], data["image"])
        K = numbers[:9].reshape(3, 3)
        camera = Camera(K[0, 0], K[1, 1], K[0, 2], K[1, 2], stored.width, stored.height).plausible(item.key)
        ego_T_ego = np.eye(4) if self.options.depthlm else inverse(ego) @ lidar_ego
        cam_T_lidar = inverse(sensor) @ ego_T_ego @ lidar_sensor
        points = rigid.move(cam_T_lidar, _sweep(raw / data["sweep"], data["sweep"]))
        label = lidar.depth_points(points, camera, "z", floor=self.options.depthlm)
        return Record(item.key, (View(stored, camera, ego @ sensor),), (label,), scene=item.scene)


def _key_frames(folder: pathlib.Path, wanted: set[str]) -> dict[tuple[str, str], dict]:
    """(sample, channel) -> its key frame's file, with its sensor's and its ego vehicle's pose."""
    channels = {row["token"]: row["channel"] for row in rows(folder / "sensor.json")}
    sensors = {row["token"]: row for row in rows(folder / "calibrated_sensor.json")}
    found, egos = {}, {}
    for row in rows(folder / "sample_data.json"):
        if row["is_key_frame"] and row["sample_token"] in wanted:
            sensor = sensors[row["calibrated_sensor_token"]]
            found[row["sample_token"], channels[sensor["sensor_token"]]] = frame = {
                "file": row["filename"],
                "sensor": np.array([*sensor["rotation"], *sensor["translation"]], np.float64),
                "K": np.array(sensor["camera_intrinsic"] or np.zeros((3, 3)), np.float64),
            }
            egos.setdefault(row["ego_pose_token"], []).append(frame)
    # A table of millions of rows: only those of key frames are kept.
    for row in rows(folder / "ego_pose.json"):
        for frame in egos.pop(row["token"], ()):
            frame["ego"] = np.array([*row["rotation"], *row["translation"]], np.float64)
    if egos:
        raise UserError(f"{folder / 'ego_pose.json'}: has no row {next(iter(egos))}, which sample_data.json refers to")
    return found


def _data(sweep: dict | None, image: dict | None) -> dict:
    if sweep is None or image is None:
        return {}
    numbers = [image["K"].ravel(), sweep["sensor"], sweep["ego"], image["sensor"], image["ego"]]
    return {"image": image["file"], "sweep": sweep["file"], "numbers": np.concatenate(numbers).tobytes()}


def _sweep(path: pathlib.Path, name: str) -> np.ndarray:
    """x y z [N, 3] of a .pcd.bin file: float32 x y z intensity ring."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadRecord(f"{name}: no such file") from None
    if len(data) % 20:
        raise BadRecord(f"{name}: {len(data)} bytes are no whole points of 5 float32 numbers")
    return np.frombuffer(data, "<f4").reshape(-1, 5)[:, :3]
