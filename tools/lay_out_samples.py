"""Lays small real samples out as the data sets that they are of are published, so that builders read them as raw data.

python tools/lay_out_samples.py SAMPLES OUT

SAMPLES: a folder with ibims1, nyu_sample, nuscenes_sample, dgp_sample, scannet_pose_sample and motorcycle_stereo (their
README says what these are). OUT gets a raw folder for `vlm3 data build` of each: ibims1 (depth only at the labelled
pixels), nyuv2_sun, nuscenes (one sample; its lidar points are the labels, put back into space), ddad, scannet and
middlebury; and, in truth/, true depth maps (of nuscenes the labels alone, as z and as distances) as somebody's answers.
"""

import argparse
import json
import pathlib
import shutil

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from vlm3_jax.builders.ibims1 import SCALE
from vlm3_jax.records.map_files import read_npy

CAMERAS = ("CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT", "CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")


def main() -> None:
    """Parses the arguments and writes the folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    args = parser.parse_args()
    for lay_out in (ibims1, nyu, nuscenes, ddad, scannet, middlebury):
        lay_out(args.samples, args.out)
        print(f"{lay_out.__name__}: {args.out}")


def ibims1(samples: pathlib.Path, out: pathlib.Path) -> None:
    """Depth PNGs that hold the labels, whole calibration files, masks that leave nothing out."""
    folder = out / "ibims1" / "ibims1_core_raw"
    for line in (samples / "ibims1" / "ibims1.jsonl").read_text().splitlines():
        row = json.loads(line)
        name, (fx, fy, cx, cy, width, height) = pathlib.Path(row["image"]).stem, row["intrinsics"]
        _copy(samples / "ibims1" / row["image"], folder / "rgb" / f"{name}.png")
        values = np.zeros((int(height), int(width)), np.uint16)
        x, y = np.array(row["pixel_coords"]).T
        values[y, x] = np.rint(np.array(row["depth"]) / SCALE)
        _png(folder / "depth" / f"{name}.png", values)
        for mask in ("mask_invalid", "mask_transp"):
            _png(folder / mask / f"{name}.png", np.full(values.shape, 255, np.uint8))
        _text(folder / "calib" / f"{name}.txt", f"{fx},{fy},{cx},{cy}\n")


def nyu(samples: pathlib.Path, out: pathlib.Path) -> None:
    """SUN RGB-D's copy: millimetres turned left by three bits."""
    camera = json.loads((samples / "nyu_sample" / "camera.json").read_text())
    for number, path in enumerate(sorted((samples / "nyu_sample").glob("rgb_*.jpg")), 1):
        folder = out / "nyuv2_sun" / "SUNRGBD" / "kv1" / "NYUdata" / f"NYU{number:04d}"
        _copy(path, folder / "image" / f"NYU{number:04d}.jpg")
        stored = np.asarray(Image.open(path.with_name(path.stem.replace("rgb", "depth") + ".png"))).astype(np.uint32)
        mm = np.rint(stored * 1000 / camera["depth_scale"]).astype(np.uint32)
        _png(folder / "depth" / f"NYU{number:04d}.png", ((mm << 3) | (mm >> 13)).astype(np.uint16))
        K = f"{camera['fx']} 0 {camera['cx']} 0 {camera['fy']} {camera['cy']} 0 0 1"
        _text(folder / "intrinsics.txt", K)
        place = out / "truth" / "nyuv2" / "kv1" / "NYUdata" / f"NYU{number:04d}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, mm.astype(np.float32) / 1000)


def nuscenes(samples: pathlib.Path, out: pathlib.Path) -> None:
    """v1.0-mini of one sample whose car stands at the map's origin and whose lidar is the car itself."""
    folder, root = samples / "nuscenes_sample", out / "nuscenes"
    labels = {pathlib.Path(row["image"]).stem: row for row in map(json.loads, _lines(folder / "depth.jsonl"))}
    objects = {pathlib.Path(row["image"]).stem: row for row in json.loads((folder / "objects.json").read_text())}
    still = {"rotation": [1, 0, 0, 0], "translation": [0, 0, 0]}
    sensors = [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}]
    calibrated = [{"token": "c-lidar", "sensor_token": "lidar", "camera_intrinsic": [], **still}]
    key = {"sample_token": "sample", "ego_pose_token": "ego", "is_key_frame": True}
    sweep = "samples/LIDAR_TOP/sample.pcd.bin"
    data = [{"token": "d-lidar", "calibrated_sensor_token": "c-lidar", "filename": sweep, **key}]
    points = []
    for name in CAMERAS:
        row, ego_T_cam = labels[name], np.array(objects[name]["cam2ego"])
        fx, fy, cx, cy, *_ = row["intrinsics"]
        z, pixels = np.array(row["depth"]), np.array(row["pixel_coords"], float)
        rays = np.column_stack([(pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(z))])
        points.append((rays * z[:, None]) @ ego_T_cam[:3, :3].T + ego_T_cam[:3, 3])
        x, y, zq, w = Rotation.from_matrix(ego_T_cam[:3, :3]).as_quat()
        pose = {"rotation": [w, x, y, zq], "translation": ego_T_cam[:3, 3].tolist()}
        K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        sensors.append({"token": name, "channel": name, "modality": "camera"})
        calibrated.append({"token": f"c-{name}", "sensor_token": name, "camera_intrinsic": K, **pose})
        file = f"samples/{name}/sample.jpg"
        data.append({"token": f"d-{name}", "calibrated_sensor_token": f"c-{name}", "filename": file, **key})
        _copy(folder / "images" / f"{name}.jpg", root / file)
    cloud = np.concatenate(points)
    cloud = np.column_stack([cloud, np.zeros((len(cloud), 2))]).astype("<f4")
    (root / sweep).parent.mkdir(parents=True, exist_ok=True)
    (root / sweep).write_bytes(cloud.tobytes())
    _label_maps(labels, objects, cloud[:, :3].astype(np.float64), out / "truth")
    tables = {
        "scene": [{"token": "scene", "name": "scene-0061"}],
        "sample": [{"token": "sample", "scene_token": "scene", "timestamp": 0}],
        "sample_data": data,
        "calibrated_sensor": calibrated,
        "sensor": sensors,
        "ego_pose": [{"token": "ego", "timestamp": 0, **still}],
    }
    for name, rows in tables.items():
        _text(root / "v1.0-mini" / f"{name}.json", json.dumps(rows))


def _label_maps(labels: dict, objects: dict, points: np.ndarray, out: pathlib.Path) -> None:
    """Each camera's map of the points [N, 3] (car's axes), the nearest in each pixel, 0 elsewhere; z and distance."""
    for name in CAMERAS:
        (fx, fy, cx, cy, width, height), ego_T_cam = labels[name]["intrinsics"], np.array(objects[name]["cam2ego"])
        local = (points - ego_T_cam[:3, 3]) @ np.linalg.inv(ego_T_cam[:3, :3]).T
        local = local[local[:, 2] > 0.05]
        # The farthest first, so that the nearest stay.
        local = local[np.argsort(-local[:, 2])]
        x = np.floor(local[:, 0] / local[:, 2] * fx + cx + 0.5).astype(int)
        y = np.floor(local[:, 1] / local[:, 2] * fy + cy + 0.5).astype(int)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        for kind, depth in (("nuscenes", local[:, 2]), ("nuscenes-distance", np.linalg.norm(local, axis=1))):
            values = np.zeros((int(height), int(width)), np.float32)
            values[y[inside], x[inside]] = depth[inside]
            place = out / kind / "scene-0061" / "sample" / f"{name}.npy"
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, values)


def ddad(samples: pathlib.Path, out: pathlib.Path) -> None:
    """The sample is in DGP's layout already."""
    shutil.copytree(samples / "dgp_sample", out / "ddad", dirs_exist_ok=True)


def scannet(samples: pathlib.Path, out: pathlib.Path) -> None:
    """One scene of four frames, without depth."""
    source, folder = samples / "scannet_pose_sample", out / "scannet" / "scans" / "scene0000_00"
    for part in ("color", "pose"):
        for path in sorted((source / part).iterdir()):
            _copy(path, folder / part / path.name)
    _copy(source / "intrinsic.txt", folder / "intrinsic" / "intrinsic_color.txt")
    _text(out / "scannet" / "scannetv2_test.txt", "scene0000_00\n")


def middlebury(samples: pathlib.Path, out: pathlib.Path) -> None:
    """Motorcycle at quarter resolution, with the first view's disparity."""
    import zipfile

    source, folder = samples / "motorcycle_stereo", out / "middlebury" / "Motorcycle-perfect"
    for number, side in enumerate(("left", "right")):
        _copy(source / f"motorcycle_{side}.png", folder / f"im{number}.png")
    with zipfile.ZipFile(source / "motorcycle_disp.npz") as archive:
        disparity = read_npy(archive.read("arr_0.npy"), "motorcycle_disp.npz")
    height, width = disparity.shape
    header = f"Pf\n{width} {height}\n-1\n".encode()
    (folder / "disp0.pfm").write_bytes(header + disparity[::-1].astype("<f4").tobytes())
    f, cx, cy, doffs, baseline = 994.978, 311.193, 254.877, 31.086, 193.001
    cameras = [f"cam{n}=[{f} 0 {cx + n * doffs}; 0 {f} {cy}; 0 0 1]" for n in (0, 1)]
    _text(folder / "calib.txt", "\n".join([*cameras, f"doffs={doffs}", f"baseline={baseline}", ""]))
    place = out / "truth" / "middlebury" / "Motorcycle-perfect" / "im0-im1.npy"
    place.parent.mkdir(parents=True, exist_ok=True)
    np.save(place, np.where(np.isfinite(disparity), baseline * f / (disparity + doffs) / 1000, 0).astype(np.float32))


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text().splitlines()


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _text(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _png(path: pathlib.Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


if __name__ == "__main__":
    main()
