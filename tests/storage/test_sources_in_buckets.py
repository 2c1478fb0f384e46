"""Folders in place are read in buckets as on the disk: the same records, the same refusals, few requests."""

import numpy as np
import pytest

from tests import own_data
from vlm3_jax import records
from vlm3_jax.data.importing import make_entry
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.storage import folders, listed

KINDS = {
    "rgbd": (own_data.rgbd, {"depth_kind": "z", "task": "correspondence", "gaps": (1,)}),
    "tum": (own_data.tum, {"kind": "rgbd", "depth_kind": "z"}),
    "wai": (own_data.wai, {"task": "correspondence", "mask": "skymask"}),
    "colmap": (own_data.colmap, {"task": "correspondence"}),
    "realestate10k": (own_data.realestate10k, {"task": "pose", "gaps": (1, 2), "images": "frames"}),
}


def fields(folder, kind: str, images: str = "", **more) -> dict:
    """Of a component that reads it."""
    own = {"kind": kind, "path": str(folder), **more}
    return own | ({"images": f"{folder}/{images}"} if images else {})


def same(one, two) -> None:
    """Whether two sources give the same records."""
    assert len(one) == len(two)
    for index in range(len(one)):
        a, b = one[index], two[index]
        assert (a.id, a.scene, a.metric, a.covisibility) == (b.id, b.scene, b.metric, b.covisibility)
        for x, y in zip(a.views, b.views, strict=True):
            assert (x.camera, x.image.name) == (y.camera, y.image.name)
            np.testing.assert_array_equal(x.world_T_cam, y.world_T_cam)
            np.testing.assert_array_equal(x.image.load(), y.image.load())
        a, b = (records.draw_labels(record, np.random.default_rng(0), 40) for record in (a, b))
        for x, y in zip(a.depth, b.depth, strict=True):
            np.testing.assert_array_equal(x.points_px, y.points_px)
            np.testing.assert_array_equal(x.depth_m, y.depth_m)
        if a.matches is not None:
            np.testing.assert_array_equal(a.matches.points1_px, b.matches.points1_px)


@pytest.mark.parametrize("name", list(KINDS))
def test_folders(gs, tmp_path, name):
    write, about = KINDS[name]
    local = write(tmp_path / name)
    folders.put_folder(local, gs / name, "")
    one, two = (make_source(name, fields(folder, **{"kind": name} | about)) for folder in (gs / name, local))
    same(one, two)


def test_conversations_and_cameras_beside_their_images(gs, tmp_path):
    path = own_data.conversations(tmp_path / "osd")
    photo = sorted((tmp_path / "osd" / "photos").iterdir())[0]
    photo.with_name(f"{photo.stem}.camera.json").write_text('{"K": [[50, 0, 31], [0, 50, 23], [0, 0, 1]]}')
    folders.put_folder(tmp_path / "osd", gs / "osd", "")
    about = {"kind": "conversations", "images": "photos", "task": "objects"}
    sources = []
    for folder in (gs / "osd", tmp_path / "osd"):
        sources.append(make_source("talk", fields(folder, **about) | {"path": str(folder / path.name)}))
    same(*sources)
    assert {record.views[0].camera.fx for record in map(sources[0].__getitem__, range(8))} > {50.0}
    np.testing.assert_array_equal(sources[0][1].conversation.boxes_px, sources[1][1].conversation.boxes_px)
    assert sources[0][1].conversation.turns == sources[1][1].conversation.turns


def test_what_is_wrong_in_a_bucket_is_named(gs, tmp_path):
    folders.put_folder(own_data.rgbd(tmp_path / "house"), gs / "house", "")
    scene = gs / "house" / "room0"
    (scene / "rgb" / "002.jpg").write_bytes(b"no image")
    found = make_source("far", fields(gs / "house", "rgbd", depth_kind="z"))
    with pytest.raises(BadRecord, match=r"room0/rgb/002\.jpg: no JPEG, PNG, WEBP file"):
        found[2]
    (scene / "depth" / "001.png").unlink()
    with pytest.raises(BadRecord, match=r"room0/depth/001\.png: no such file"):
        found[1]
    (scene / "rgb" / "003.jpg").unlink()
    with pytest.raises(BadRecord, match=r"room0/rgb/003\.jpg: no such image file"):
        found[3]
    with pytest.raises(UserError, match=rf"^far: no such folder {gs}/none"):
        make_source("far", fields(gs / "none", "rgbd", depth_kind="z"))
    (gs / "desk" / "rgb.txt").write_text("0.0 ../../secret.png")
    for name in ("depth.txt", "intrinsics.txt"):
        (gs / "desk" / name).write_text("1 2 3 4" if name[0] == "i" else "0.0 a.png")
    with pytest.raises(UserError, match=r"rgb\.txt: '../../secret\.png' leaves the folder"):
        make_source("far", fields(gs / "desk", "rgbd", depth_kind="z"))
    with pytest.raises(UserError, match=rf"^far: {gs}: HDF5 files are read from a disk only; copy them there, or"):
        make_source("far", fields(gs, "gta_sfm"))


def test_a_folder_is_listed_once_and_a_frame_takes_five_requests(faulty_run, tmp_path):
    place, proxy = faulty_run
    folders.put_folder(own_data.rgbd(tmp_path / "house"), place / "house", "")
    proxy.seen.clear()
    found = make_source("far", fields(place / "house", "rgbd", depth_kind="z"))
    assert len(proxy.seen) == 1
    proxy.seen.clear()
    record = found[1]
    record.views[0].image.load()
    record.depth_maps[0].load()
    # Image, intrinsics, pose, header of the depth map, depth map.
    assert len(proxy.seen) == 5


def test_a_listed_folder_is_as_the_folder(gs):
    for name in ("a/one.txt", "a/b/two.txt", "a.txt", "c/b/x"):
        (gs / name).write_text(name)
    found = listed.listed(gs)
    assert found == gs
    names = ("", "a", "a/one.txt", "a/b", "a.txt", "c", "none", "a/none")
    for one, two in ((found / name, gs / name) for name in names):
        for ask in ("exists", "is_file", "is_dir", "walk", "files"):
            assert getattr(one, ask)() == getattr(two, ask)(), (ask, one)
        assert list(one.glob("*")) == list(two.glob("*"))
    assert list(found.glob("*/b/*")) == list(gs.glob("*/b/*"))
    assert list(found.rglob("*.txt")) == list(gs.rglob("*.txt"))
    assert [list(path.iterdir()) for path in (found, found / "a")] == [list(path.iterdir()) for path in (gs, gs / "a")]
    assert (found / "a/one.txt").stat().st_size == (gs / "a/one.txt").stat().st_size == 9
    assert (found / "a" / "b").parent.parent.is_dir()
    assert (found / "a/one.txt").read_text() == "a/one.txt"
    for ask in ((found / "none").stat, lambda: list((found / "none").iterdir())):
        with pytest.raises(FileNotFoundError):
            ask()
    # What comes later is not seen, above it nothing is known.
    (gs / "late").write_text("x")
    assert not (found / "late").exists()
    assert found.parent.is_dir()


def test_import_looks_into_a_bucket(gs, tmp_path):
    folders.put_folder(own_data.rgbd(tmp_path / "house"), gs / "house", "")
    own_data.conversations(tmp_path / "osd")
    folders.put_folder(tmp_path / "osd", gs / "osd", "")
    entry = make_entry(str(gs / "house"), depth_kind="z")
    here = make_entry(str(tmp_path / "house"), depth_kind="z")
    assert (entry.counts, entry.found) == (here.counts, here.found)
    assert f"path={str(gs / 'house')!r}" in entry.code()
    talk = make_entry(str(gs / "osd" / "talk.json"), images=str(gs / "osd" / "photos"))
    assert talk.fields["images"] == str(gs / "osd" / "photos")
