"""Folders as users have them, of the analytic world: RGB-D, WAI scenes, COLMAP captures, conversations, pairs."""

import json
import pathlib
import struct

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.builders import world
from tests.builders.files import jpeg, png, steps, text

WIDTH, HEIGHT = 64, 48
# fx, fy, cx, cy; pixels from the centre of the first.
K = (60.0, 61.0, 30.5, 24.25)


def matrix(intrinsics=K) -> str:
    """K as text."""
    fx, fy, cx, cy = intrinsics
    return f"{fx} 0 {cx}\n0 {fy} {cy}\n0 0 1\n"


def poses(count: int, scene: int = 0) -> list[np.ndarray]:
    """Camera-to-world of a walk, whose neighbours see much the same."""
    return [world.pose(x=0.15 * n - 0.3, z=-0.1 * scene, yaw=4.0 * n - 6 + 20 * scene, pitch=-2) for n in range(count)]


def seen(pose, width: int = WIDTH, height: int = HEIGHT, intrinsics=K) -> world.Seen:
    """What a camera sees, at another size if asked."""
    fx, fy, cx, cy = intrinsics
    sx, sy = width / WIDTH, height / HEIGHT
    scaled = fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5
    return world.render(world.pinhole(*scaled, width, height), pose)


def truth(pose, points_px, kind: str = "z") -> np.ndarray:
    """The depth at pixels [N, 2], inf where nothing is."""
    rays = (np.asarray(points_px) - K[2:]) / K[:2]
    found = world.render(np.c_[rays, np.ones(len(rays))], pose)
    return found.z if kind == "z" else found.distance


def rgbd(folder: pathlib.Path, scenes: int = 2, frames: int = 4, kind: str = "z", posed: bool = True) -> pathlib.Path:
    """Scenes of rgb/NAME.jpg, depth/NAME.png (mm, half as large), pose/NAME.txt and one intrinsics.txt."""
    for scene in range(scenes):
        place = folder / f"room{scene}"
        text(place / "intrinsics.txt", matrix())
        for n, pose in enumerate(poses(frames, scene)):
            jpeg(place / "rgb" / f"{n:03d}.jpg", seen(pose).rgb)
            found = seen(pose, WIDTH // 2, HEIGHT // 2)
            png(place / "depth" / f"{n:03d}.png", steps(found.z if kind == "z" else found.distance, 1000))
            if posed:
                text(place / "pose" / f"{n:03d}.txt", "\n".join(" ".join(map(repr, row)) for row in pose.tolist()))
    return folder


def tum(folder: pathlib.Path, frames: int = 3) -> pathlib.Path:
    """TUM's lists, times a little apart, an image without depth, and depths of 1/5000 m."""
    rgb, depth, truth_rows = ["# time file"], ["# time file"], ["# time tx ty tz qx qy qz qw"]
    for n, pose in enumerate(poses(frames)):
        jpeg(folder / "rgb" / f"{n}.0.jpg", seen(pose).rgb)
        png(folder / "depth" / f"{n}.01.png", steps(seen(pose).z, 5000))
        rgb.append(f"{n}.0 rgb/{n}.0.jpg")
        depth.append(f"{n}.01 depth/{n}.01.png")
        values = [*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()]
        truth_rows.append(f"{n}.005 {' '.join(f'{v:.9f}' for v in values)}")
    jpeg(folder / "rgb" / "9.5.jpg", seen(poses(1)[0]).rgb)
    rgb.append("9.5 rgb/9.5.jpg")
    for name, rows in (("rgb", rgb), ("depth", depth), ("groundtruth", truth_rows)):
        text(folder / f"{name}.txt", "\n".join(rows) + "\n")
    text(folder / "intrinsics.txt", " ".join(map(str, K)))
    return folder


def wai(folder: pathlib.Path, scenes: int = 2, frames: int = 3, scale: str = "metric", matrices=True) -> pathlib.Path:
    """MapAnything's layout; depth as npy, since EXR needs an extra. A mask that leaves out the left half."""
    for scene in range(scenes):
        place = folder / f"scene{scene}"
        rows = []
        for n, pose in enumerate(poses(frames, scene)):
            name = f"{n:04d}"
            jpeg(place / "images" / f"{name}.jpg", seen(pose).rgb)
            (place / "depth").mkdir(exist_ok=True)
            np.save(place / "depth" / f"{name}.npy", np.where(np.isfinite(seen(pose).z), seen(pose).z, 0).astype("f4"))
            left = np.zeros((HEIGHT, WIDTH), np.uint8)
            left[:, : WIDTH // 2] = 255
            png(place / "skymask" / f"{name}.png", left)
            rows.append(
                {
                    "frame_name": name,
                    "image": f"images/{name}.jpg",
                    "depth": f"depth/{name}.npy",
                    "skymask": f"skymask/{name}.png",
                    "transform_matrix": pose.tolist(),
                }
            )
        meta = {
            "scene_name": f"scene{scene}",
            "dataset_name": "own",
            "version": "0.1",
            "shared_intrinsics": True,
            "camera_model": "PINHOLE",
            "camera_convention": "opencv",
            "scale_type": scale,
            **dict(zip(("fl_x", "fl_y", "cx", "cy", "w", "h"), (*K, WIDTH, HEIGHT))),
            "frame_modalities": {kind: {"frame_key": kind, "format": kind} for kind in ("image", "depth")},
            "frames": rows,
        }
        text(place / "scene_meta.json", json.dumps(meta))
        if matrices:
            shared = np.full((frames, frames), 0.2, np.float32)
            shared[0, 1] = shared[1, 0] = 0.6
            np.fill_diagonal(shared, 0.8)
            target = place / "covisibility" / "v0"
            target.mkdir(parents=True)
            np.save(target / f"pairwise_covisibility--{frames}x{frames}.npy", shared)
    return folder


def sparse_points(count: int, frames: int, seed: int = 0):
    """World points on surfaces of the views, and for each view (pixels from the corner, numbers of its points)."""
    rng = np.random.default_rng(seed)
    points = []
    for pose in poses(frames):
        pixels = rng.uniform([2, 2], [WIDTH - 3, HEIGHT - 3], (count // frames, 2))
        rays = np.c_[(pixels - K[2:]) / K[:2], np.ones(len(pixels))]
        z = world.render(rays, pose).z
        points.append((rays * z[:, None])[np.isfinite(z)] @ pose[:3, :3].T + pose[:3, 3])
    points = np.concatenate(points)
    observed = []
    for pose in poses(frames):
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = local[:, :2] / local[:, 2:] * K[:2] + K[2:]
        shown = world.render(local / np.abs(local[:, 2:]), pose).z
        inside = (local[:, 2] > 0.1) & (pixels > 1).all(1) & (pixels < [WIDTH - 2, HEIGHT - 2]).all(1)
        good = np.flatnonzero(inside & (np.abs(shown - local[:, 2]) < 1e-3 * local[:, 2]))
        observed.append((pixels[good] + 0.5, good))
    return points, observed


def colmap(folder: pathlib.Path, frames: int = 6, binary: bool = False, model: str = "PINHOLE") -> pathlib.Path:
    """images/ and sparse/0 as COLMAP writes them; ids that are no row numbers, observations without points."""
    points, observed = sparse_points(600, frames)
    corner = K[0], K[1], K[2] + 0.5, K[3] + 0.5
    images, place, tracks = [], folder / "sparse" / "0", [[] for _ in points]
    place.mkdir(parents=True)
    for n, (pose, (pixels, numbers)) in enumerate(zip(poses(frames), observed, strict=True)):
        jpeg(folder / "images" / f"walk/{n}.jpg", seen(pose).rgb)
        R = pose[:3, :3].T
        q = np.roll(Rotation.from_matrix(R).as_quat(), 1)
        for row, i in enumerate(numbers.tolist()):
            tracks[i] += [10 + n, row]
        rows = [(*p, 7 + 3 * i) for p, i in zip(pixels.tolist(), numbers.tolist())] + [(5.5, 6.5, -1)]
        images.append((10 + n, q, -R @ pose[:3, 3], 3, f"walk/{n}.jpg", rows))
    ids = [7 + 3 * i for i in range(len(points))]
    (_colmap_bin if binary else _colmap_txt)(place, model, corner, images, ids, points, tracks)
    return folder


def _colmap_txt(place, model, params, images, ids, points, tracks) -> None:
    text(place / "cameras.txt", f"# cameras\n3 {model} {WIDTH} {HEIGHT} {' '.join(map(repr, params))}\n")
    lines = ["# images"]
    for id, q, t, camera, name, rows in images:
        lines.append(f"{id} {' '.join(f'{float(v)!r}' for v in (*q, *t))} {camera} {name}")
        lines.append(" ".join(f"{x!r} {y!r} {point}" for x, y, point in rows))
    text(place / "images.txt", "\n".join(lines) + "\n")
    table = zip(ids, points.tolist(), tracks)
    rows = [f"{id} {p[0]!r} {p[1]!r} {p[2]!r} 9 9 9 0.5 {' '.join(map(str, track))}" for id, p, track in table]
    text(place / "points3D.txt", "\n".join(["# points", *rows]) + "\n")


def _colmap_bin(place, model, params, images, ids, points, tracks) -> None:
    number = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2}[model]
    camera = struct.pack("<QiiQQ", 1, 3, number, WIDTH, HEIGHT) + struct.pack(f"<{len(params)}d", *params)
    (place / "cameras.bin").write_bytes(camera)
    data = struct.pack("<Q", len(images))
    for id, q, t, camera, name, rows in images:
        data += struct.pack("<I7dI", id, *q, *t, camera) + name.encode() + b"\0" + struct.pack("<Q", len(rows))
        data += b"".join(struct.pack("<ddq", *row) for row in rows)
    (place / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(points))
    for id, p, track in zip(ids, points.tolist(), tracks):
        data += struct.pack("<QdddBBBdQ", id, *p, 9, 9, 9, 0.5, len(track) // 2) + struct.pack(
            f"<{len(track)}i", *track
        )
    (place / "points3D.bin").write_bytes(data)


def conversations(folder: pathlib.Path, count: int = 8, name: str = "talk.json") -> pathlib.Path:
    """SpatialRGPT's rows: two questions about three regions of an image, in one JSON list."""
    rows = []
    for n in range(count):
        jpeg(folder / "photos" / f"{n:04x}.jpg", seen(poses(count)[n]).rgb)
        rows.append(
            {
                "filename": f"{n:04x}",
                "bbox": [[4, 5, 20, 30], [30, 8, 60, 40], [n, 2, n + 20, 30]],
                "conversations": [
                    {"from": "human", "value": "<image>\nIs <mask> <depth> wider than <mask> <depth>?"},
                    {"from": "gpt", "value": "No, Region [0] is thinner than Region [1]."},
                    {"from": "human", "value": "How tall is <mask> <depth>?"},
                    {"from": "gpt", "value": f"Region [0] is {n + 1}.50 feet tall."},
                ],
            }
        )
    text(folder / name, json.dumps(rows))
    return folder / name


def realestate10k(folder: pathlib.Path, clips: int = 2, frames: int = 4) -> pathlib.Path:
    """CLIP.txt with intrinsics as parts of the sides and world-to-camera poses; an image too few."""
    for clip in range(clips):
        rows = ["https://www.youtube.com/watch?v=x"]
        for n, pose in enumerate(poses(frames, clip)):
            time = 100_100 + 33_000 * n
            inverse = np.linalg.inv(pose)[:3].ravel()
            sides = [K[0] / WIDTH, K[1] / HEIGHT, (K[2] + 0.5) / WIDTH, (K[3] + 0.5) / HEIGHT]
            rows.append(" ".join(map(repr, [time, *sides, 0.0, 0.0, *inverse.tolist()])))
            if n:
                png(folder / "frames" / f"{clip:016x}" / f"{time}.png", seen(pose).rgb)
        text(folder / f"{clip:016x}.txt", "\n".join(rows) + "\n")
    return folder


def gta_sfm(folder: pathlib.Path, files: int = 2, frames: int = 3) -> pathlib.Path:
    """HDF5 files with image_, K_, pose_ and depth_ of each frame; a frame without depth."""
    import io

    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        with h5py.File(folder / f"2019010{number}_000000.hdf5", "w") as file:
            for n, pose in enumerate(poses(frames + 1, number)):
                buffer = io.BytesIO()
                Image.fromarray(seen(pose).rgb).save(buffer, "PNG")
                file[f"image_{n}"] = np.frombuffer(buffer.getvalue(), np.uint8)
                fx, fy, cx, cy = K
                file[f"K_{n}"] = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]])
                file[f"pose_{n}"] = pose
                if n < frames:
                    file[f"depth_{n}"] = np.where(np.isfinite(seen(pose).z), seen(pose).z, 0).astype(np.float32)
    return folder
