import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.builders import files, pairs
from vlm3_jax.builders.mpsd import Mpsd
from vlm3_jax.builders.readers import opensfm

NAMES = ("__epk-nlU2UVQ7bBPQKbiA", "0aZq1", "zz-9_b", "unposed")
# A focal length and no principal point: it is in the middle of the pixels.
CAMERA = {"fx": 55.0, "fy": 55.0, "cx": (pairs.WIDTH - 1) / 2, "cy": (pairs.HEIGHT - 1) / 2}
FRAMES = dict(zip(NAMES, pairs.walk(poses=(*pairs.WALK, pairs.WALK[0]), **CAMERA), strict=True))


def write(raw, part: str, group: str, names) -> None:
    folder, shots = raw / "reconstruction_data" / group, {}
    for name in names:
        frame = FRAMES[name]
        seen = frame.seen()
        files.jpeg(raw / part / f"{name}.jpg", seen.rgb)
        # Depth is coarser than the image: of every second pixel's corner.
        coarse = frame.seen(pairs.world.pixels(frame.width // 2, frame.height // 2) * 2 + 0.5)
        files.png(raw / part / f"{name}.png", files.steps(coarse.z, 100))
        if name != "unposed":
            cam_T_world = np.linalg.inv(frame.world_T_cam)
            rotation = Rotation.from_matrix(cam_T_world[:3, :3]).as_rotvec().tolist()
            shots[name] = {"rotation": rotation, "translation": cam_T_world[:3, 3].tolist(), "camera": "v2 x"}
    files.dump(folder / "reconstruction.json", [{"cameras": {}, "shots": shots}, {"shots": {}}])
    files.text(folder / "image_list.txt", "\n".join(f"../images/{name}" for name in [*names, "elsewhere"]) + "\n")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpsd")
    write(folder, "train", "geoeven_4/2019-03-17T16_16_24.807705", NAMES)
    write(folder, "val", "geoeven_4_extension/2019-11-14T11_36_12.984067", NAMES[:2])
    write(folder, "train", "geoeven_4/2019-03-18T00_00_00.000000", NAMES[:1])
    for part in ("train", "val"):
        focals = {name: {"focal": 55.0 / pairs.WIDTH} for name in NAMES} if part == "train" else {}
        files.dump(folder / f"{part}.json", focals)
    return folder


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(Mpsd(), raw)
    assert len(records) == 4
    assert len(skipped) == 3
    assert set(skipped.values()) == {"a frame has no shot in the reconstruction"}
    pairs.check(records, FRAMES, tolerance_m=0.0055)
    assert not any(record.metric for record in records.values())
    assert records[next(iter(records))].depth_maps[0].width == pairs.WIDTH // 2


def test_a_reconstruction_with_an_image_of_val_is_held_out(raw, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(raw, copy)
    focals = json.loads((copy / "train.json").read_text())
    files.dump(copy / "val.json", {NAMES[1]: focals.pop(NAMES[1])})
    files.dump(copy / "train.json", focals)
    shutil.copytree(copy / "train", copy / "val", dirs_exist_ok=True)
    train, val = (pairs.build(Mpsd(), copy, split)[0] for split in ("train", "val"))
    assert not train
    assert {record.scene.split("/")[0] for record in val.values()} == {"geoeven_4", "geoeven_4_extension"}


def test_rotations_are_those_of_scipy():
    for vector in np.random.default_rng(0).normal(size=(20, 3)) * np.geomspace(1e-9, 3, 20)[:, None]:
        np.testing.assert_allclose(opensfm.rotation(vector), Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)
