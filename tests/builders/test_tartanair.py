import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.builders import files, pairs
from vlm3_jax.builders.readers import tartanair as rules
from vlm3_jax.builders.tartanair import TartanAir, TartanAirWideBaseline
from vlm3_jax.errors import UserError

h5py = pytest.importorskip("h5py")
SIZE = 64
# 90 degrees across a square image: its middle is 31.5 when pixels are counted from their centres.
SQUARE = {"fx": SIZE / 2, "fy": SIZE / 2, "cx": (SIZE - 1) / 2, "cy": (SIZE - 1) / 2}
FRAMES = {f"{n:06d}": frame for n, frame in enumerate(pairs.walk(SIZE, SIZE, **SQUARE))}
NED_T_CV = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])


def float_png(path, depth) -> None:
    """As OpenCV writes an array of bytes [H, W, 4]: its channels are blue, green, red, alpha."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgra = np.ascontiguousarray(depth, "<f4").view(np.uint8).reshape(*depth.shape, 4)
    Image.fromarray(np.ascontiguousarray(bgra[..., [2, 1, 0, 3]]), "RGBA").save(path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tartanair")
    for place in ("ModernCityDowntown/Data_hard/P003", "HongKong/Data_easy/P000", "Supermarket/Data_easy/P000"):
        lines = []
        for key, frame in FRAMES.items():
            seen, pose = frame.seen(), NED_T_CV @ frame.world_T_cam @ NED_T_CV.T
            files.png(folder / place / f"image_lcam_front/{key}_lcam_front.png", seen.rgb)
            sky = np.where(np.isfinite(seen.z), seen.z, 10_000.0)
            float_png(folder / place / f"depth_lcam_front/{key}_lcam_front_depth.png", sky)
            quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()
            lines.append(" ".join(f"{value:.8e}" for value in (*pose[:3, 3], *quaternion)))
        files.text(folder / place / "pose_lcam_front.txt", "\n".join(lines) + "\n")
    return folder


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(TartanAir(), raw)
    assert not skipped
    assert len(records) == 3
    pairs.check(records, FRAMES)


def test_holds_out_the_published_environments(raw):
    found = {
        split: {record.scene for record in pairs.build(TartanAir(), raw, split)[0].values()}
        for split in ("train", "val", "test")
    }
    assert found == {
        "train": {"ModernCityDowntown/Data_hard/P003"},
        "val": {"HongKong/Data_easy/P000"},
        "test": {"Supermarket/Data_easy/P000"},
    }


@pytest.mark.parametrize(
    ("environment", "split", "place"),
    [
        ("HongKong", "val", "HongKong"),
        ("PolarSciFi", "test", "PolarSciFi"),
        ("PrisonNight", "train", "Prison"),
        ("WaterMillDay", "train", "WaterMill"),
        ("SeasonalForestWinterNight", "train", "SeasonalForest"),
    ],
)
def test_seasons_are_of_one_place(environment, split, place):
    assert (rules.split_of(environment), rules.place(environment)) == (split, place)


def test_the_sky_begins_where_the_environment_says():
    depth = np.array([[30.0, 79.0, 81.0, 199.0, 201.0]])
    assert np.isfinite(rules.without_sky(depth, "Prison")).sum() == 2
    assert np.isfinite(rules.without_sky(depth, "HongKong")).sum() == 4
    assert np.isfinite(rules.without_sky(depth, "OldBrickHouseDay")).sum() == 1


WIDE = {f"{pair:08d}_{view}": frame for pair in (0, 1) for view, frame in enumerate(pairs.walk()[pair : pair + 2])}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tartanair_wb")
    (folder / "test").mkdir()
    (folder / "test_camera_data").mkdir()
    # The first pair lies behind the second one.
    files.dump(
        folder / "test/index_map.json", {"1": ["data_00.h5", 0], "0": {"file_name": "data_00.h5", "file_index": 1}}
    )
    files.dump(folder / "test/errors.json", {"forward_match_errors": []})
    frames = list(WIDE.values())
    with h5py.File(folder / "test/data_00.h5", "w") as file:
        for view in (0, 1):
            two = [frames[2 + view].seen(), frames[view].seen()]
            file[f"img{view}"] = np.stack([seen.rgb for seen in two])
            file[f"depth{view}"] = np.stack([np.where(np.isfinite(seen.z), seen.z, 1e4) for seen in two]).astype("f4")
    for view in (0, 1):
        both = frames[view::2]
        K = [[[f.fx, 0, f.cx + 0.5], [0, f.fy, f.cy + 0.5], [0, 0, 1]] for f in both]
        np.savez(folder / f"test_camera_data/cam{view + 1}_intrinsics.npz", np.array(K, np.float32))
        np.savez(folder / f"test_camera_data/cam{view + 1}_extrinsics.npz", np.stack([f.world_T_cam for f in both]))
    table = {"columns": ["frame", "img1_env", "img2_env"], "index": [0, 1]}
    table["data"] = [[7, "SupermarketDay", "SupermarketNight"], [8, "Sewerage", "Sewerage"]]
    files.dump(folder / "test_camera_data/metadata.json", table)
    return folder


def test_wide_baselines_are_given_back(wide):
    records, skipped = pairs.build(TartanAirWideBaseline(), wide, "test")
    assert not skipped
    assert [record.scene for record in records.values()] == ["Sewerage", "Supermarket"]
    pairs.check(records, WIDE)


def test_a_split_without_cameras_is_named(wide):
    with pytest.raises(UserError, match="not there"):
        TartanAirWideBaseline().frames(wide, "train")
