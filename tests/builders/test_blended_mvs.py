import numpy as np
import pytest

from tests.builders import files, pairs
from vlm3_jax.builders.blended_mvs import BlendedMVS
from vlm3_jax.builders.readers.pfm import read_pfm
from vlm3_jax.errors import BadRecord, UserError

TRAIN, VAL = "5a3ca9cb270f0e3f14d0eddb", "00000000000000000000000a"


def pfm(values) -> bytes:
    """As the data set's own writer does: little-endian, rows from the bottom up."""
    height, width = values.shape
    return f"Pf\n{width} {height}\n-1.000000\n".encode() + np.flipud(values).astype("<f4").tobytes()


def write(raw, scene: str, frames, neighbours) -> None:
    folder = raw / scene
    for n, frame in reversed(list(enumerate(frames))):
        seen = frame.seen()
        files.jpeg(folder / f"blended_images/{n:08d}.jpg", seen.rgb)
        files.jpeg(folder / f"blended_images/{n:08d}_masked.jpg", 0 * seen.rgb)
        rows = [" ".join(f"{v:.9g}" for v in row) for row in np.linalg.inv(frame.world_T_cam)]
        # The author counts from the image's corner.
        K = [f"{frame.fx} 0.0 {frame.cx + 0.5}", f"0.0 {frame.fy} {frame.cy + 0.5}", "0.0 0.0 1.0"]
        lines = ["extrinsic", *rows, "", "intrinsic", *K, "", "0.5 0.01 128 9.0", ""]
        files.text(folder / f"cams/{n:08d}_cam.txt", "\n".join(lines))
        path = folder / f"rendered_depth_maps/{n:08d}.pfm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pfm(np.where(np.isfinite(seen.z), seen.z, 0)))
    views = [f"{view}\n{len(near)} " + " ".join(f"{n} {1.5:.2f}" for n in near) for view, near in neighbours.items()]
    files.text(folder / "cams/pair.txt", "\n".join([str(len(neighbours)), *views, ""]))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blended_mvs")
    frames = pairs.walk(poses=(*pairs.WALK, pairs.AWAY))
    write(folder, TRAIN, frames, {0: [1, 2, 3], 1: [0, 2], 2: [1], 3: [0]})
    write(folder, VAL, frames[:2], {0: [1], 1: [0]})
    return folder


FRAMES = {f"{n:08d}": frame for n, frame in enumerate(pairs.walk(poses=(*pairs.WALK, pairs.AWAY)))}


def test_gives_back_depth_cameras_and_poses(raw):
    records, skipped = pairs.build(BlendedMVS(), raw)
    assert sorted(records) == [f"{TRAIN}/{a:08d}-{b:08d}" for a, b in ((0, 1), (0, 2), (1, 2))]
    pairs.check(records, FRAMES)
    assert skipped == {f"{TRAIN}/00000000-00000003": "its views share at most 25%"}
    assert not any(record.metric for record in records.values())
    assert all(record.scene == TRAIN for record in records.values())


def test_holds_out_the_published_scenes(raw):
    records, _ = pairs.build(BlendedMVS(), raw, "val")
    assert list(records) == [f"{VAL}/00000000-00000001"]


def test_images_are_stored_as_they_are(raw):
    records, _ = pairs.build(BlendedMVS(), raw)
    image = records[f"{TRAIN}/00000000-00000001"].views[1].image
    assert image.data == (raw / TRAIN / "blended_images/00000001.jpg").read_bytes()


def test_what_is_wrong_is_named(raw, tmp_path):
    with pytest.raises(UserError, match="24 hexadecimal digits"):
        BlendedMVS().frames(tmp_path, "train")
    with pytest.raises(BadRecord, match=r"^x\.pfm: a PFM of 4 x 4 needs 64 bytes"):
        read_pfm(b"Pf\n4 4\n-1\n" + b"0" * 63, "x.pfm")
    with pytest.raises(BadRecord, match="no PFM"):
        read_pfm(b"P6\n4 4\n255\n", "x.pfm")
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    np.testing.assert_array_equal(read_pfm(b"Pf\n3 2\n1.0\n" + big[::-1].tobytes(), "x"), big)
