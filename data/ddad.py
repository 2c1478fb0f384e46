"""DDAD: long-range lidar points in the images of six cameras."""

import pathlib

from vlm3_jax.builders import common
from vlm3_jax.builders.readers import dgp, lidar, rigid
from vlm3_jax.camera import Camera
from vlm3_jax.pose import inverse
from vlm3_jax.records import Record, View

CAMERAS = ("CAMERA_01", "CAMERA_05", "CAMERA_06", "CAMERA_07", "CAMERA_08", "CAMERA_09")


class DDAD(common.Builder):
    """Each sample gives a record for each camera: the points of its lidar in that image.

    The chain is world_T_lidar and world_T_camera of the data themselves, each at its own time (`readers.dgp`). Images
    are rectified by the publisher; fx and fy differ by half a per cent and stay so. With `depthlm` pixels are truncated
    and the last point in one stays, as in DGP's generate_depth_map, which DepthLM's curator calls; both hold z. Scenes
    that the index names and the folder lacks are skipped and counted. What moves is where the sweep met it, which is
    some hundredths of a second before the image: its points are off by as far as it went since, and stay so.
    """

    name = "ddad"
    title = "DDAD"
    folder = "bench"
    splits = ("train", "val")
    held_out = "val"
    layout = "ddad.json, SCENE/{scene_SHA.json, calibration/, rgb/CAMERA_*/*.jpg, point_cloud/LIDAR/*.npz}"
    labels = "lidar points, z in metres; camera poses in the scene's world"
    licence = "CC BY-NC-SA 4.0, github.com/TRI-ML/DDAD"
    checked = (
        "fixture; one real scene of DGP's own tests (3 cameras, 3 samples), looked at: its lidar's 3-D boxes fall on "
        "its 2-D boxes to the pixel, so this is its authors' chain"
    )
    doubts = (
        "the pixel centre of (0, 0)",
        "points that the car's own bonnet hides are kept, as DepthLM keeps them",
        "in that scene, whose own car stands still, points of standing cars nearer than 10 m lie 30 to 60 pixels "
        "beside their outlines in the front and the right image, and so do its 3-D boxes: not time, not motion (poses "
        "equal the extrinsics to 0.1 mm), not this reader. Edges in the front image fit best with the points 0.85 m "
        "further ahead, those in the right image need another shift; whether DDAD itself has this is not known",
    )
    test = "tests/builders/test_ddad.py"
    honours_depthlm = True

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """Samples times cameras, each with the files, poses and intrinsics of its image and its lidar."""
        items = []
        for file in dgp.scene_files(raw, split, "ddad.json"):
            scene = pathlib.PurePosixPath(file).parent.as_posix()
            if not (raw / file).exists():
                items.append(common.Item(scene, scene, {"missing": file}))
                continue
            for number, data in dgp.samples(raw / file):
                for name in CAMERAS:
                    if name in data:
                        found = {"image": data[name], "lidar": data.get("LIDAR")}
                        items.append(common.Item(f"{scene}/{number:06d}/{name}", scene, found))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """One image with the points of its sample's lidar."""
        if "missing" in item.data:
            raise common.Skip(f"the index names {item.data['missing']}, which is not in the folder")
        image, cloud = item.data["image"], item.data["lidar"]
        if cloud is None:
            raise common.Skip("the sample has no lidar points")
        folder = raw / item.scene
        stored = common.image(folder / image.file, f"{item.scene}/{image.file}")
        fx, fy, cx, cy = image.intrinsics or (0, 0, 0, 0)
        camera = Camera(fx, fy, cx, cy, stored.width, stored.height).plausible(item.key)
        world_T_cam = image.world_T_sensor
        points = dgp.points(folder / cloud.file, f"{item.scene}/{cloud.file}")
        cam_T_lidar = inverse(world_T_cam) @ cloud.world_T_sensor
        depthlm = self.options.depthlm
        label = lidar.depth_points(rigid.move(cam_T_lidar, points), camera, "z", floor=depthlm, last=depthlm)
        return Record(item.key, (View(stored, camera, world_T_cam),), (label,), scene=item.scene)
