import numpy as np
import pytest

from tests import own_data
from vlm3_jax.errors import UserError
from vlm3_jax.formats import colmap


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_pycolmap_reads_the_same_model(tmp_path, binary):
    pycolmap = pytest.importorskip("pycolmap")
    folder = own_data.colmap(tmp_path / "capture", binary=binary) / "sparse" / "0"
    theirs = pycolmap.Reconstruction(folder)
    model = colmap.read_model(folder)
    assert list(model.images) == sorted(image.name for image in theirs.images.values())
    for their in theirs.images.values():
        image = model.images[their.name]
        pose = np.linalg.inv(np.vstack([their.cam_from_world().matrix(), [0, 0, 0, 1]]))
        np.testing.assert_allclose(image.world_T_cam, pose, atol=1e-9)
        seen = {p.point3D_id: p.xy - 0.5 for p in their.points2D if p.has_point3D()}
        assert image.points.tolist() == sorted(seen)
        np.testing.assert_allclose(image.points_px, [seen[id] for id in sorted(seen)])
        camera = theirs.cameras[their.camera_id]
        assert image.camera.params == tuple(camera.params)
        for place, pixel in zip(model.places(image.points)[:20], image.points_px):
            local = np.linalg.inv(image.world_T_cam) @ [*place, 1]
            np.testing.assert_allclose(camera.img_from_cam(local[:3]), pixel + 0.5, atol=1e-3)


def test_images_are_read_without_points(tmp_path):
    """As MegaDepth and ETH3D come; an image may see no point, which leaves its second line empty."""
    folder = own_data.colmap(tmp_path / "capture") / "sparse" / "0"
    whole = colmap.read_model(folder).images
    (folder / "points3D.txt").unlink()
    text = (folder / "images.txt").read_text().splitlines()
    (folder / "images.txt").write_text("\n".join([*text[:2], "", *text[3:], ""]))
    images = colmap.read_images(folder)
    assert list(images) == list(whole)
    first, *others = images
    assert images[first].points.tolist() == []
    assert all(images[name].points.tolist() == whole[name].points.tolist() for name in others)
    with pytest.raises(UserError, match=r"no COLMAP model \(cameras, images and points3D, \.bin or \.txt\)"):
        colmap.read_model(folder)


def _image(*points):
    camera = colmap.ModelCamera("PINHOLE", 4, 4, (4.0, 4.0, 2.0, 2.0))
    return colmap.ModelImage("a", camera, np.eye(4), np.array(points, np.int64), np.zeros((len(points), 2)))


def test_common_points_are_counted():
    rng = np.random.default_rng(0)
    images = [_image(*np.flatnonzero(rng.random(40) < share)) for share in (0.5, 0.0, 0.9, 0.1, 0.4)]
    pairs, counts = colmap.common_points(images)
    expected = {(i, j): len(set(images[i].points) & set(images[j].points)) for i in range(5) for j in range(i + 1, 5)}
    assert dict(zip(map(tuple, pairs.tolist()), counts.tolist())) == {k: n for k, n in expected.items() if n}
    assert colmap.share(images[0], images[2]) == expected[0, 2] / len(images[0].points)
    assert colmap.share(images[1], images[2]) == 0
    assert len(colmap.common_points([])[1]) == 0


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_damage_is_named(tmp_path, binary):
    folder = own_data.colmap(tmp_path / "capture", binary=binary) / "sparse" / "0"
    for name in ("images", "points3D", "cameras"):
        path = folder / (f"{name}.bin" if binary else f"{name}.txt")
        good = path.read_bytes()
        path.write_bytes(good[:-9] if binary else good + b"3 no numbers\n")
        with pytest.raises(UserError, match=rf"{name}\.(bin|txt): not a readable COLMAP file"):
            colmap.read_model(folder)
        path.write_bytes(good)
