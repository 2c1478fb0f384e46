"""PLY, GLB and COLMAP text, read back by plyfile, trimesh and pycolmap."""

import dataclasses
import io
import json
import struct

import numpy as np
import plyfile
import pytest
import trimesh

from vlm3_jax.answers import cloud, colmap_text, glb, ply
from vlm3_jax.errors import UserError


def place(depth, x, y) -> np.ndarray:
    """Where the map has the pixel (x, y), metres."""
    return depth.camera.rays([[x, y]])[0] * depth.map_m("z")[y, x]


def test_ply(depth, photo):
    data = plyfile.PlyData.read(io.BytesIO(ply.encode_depth(depth, photo)))
    vertices = data["vertex"]
    # One pixel is unknown.
    assert vertices.count == 40 * 30 - 1
    xyz = np.stack([vertices[axis] for axis in "xyz"], -1)
    np.testing.assert_allclose(xyz[39 + 7], place(depth, 7, 1), rtol=1e-5)
    np.testing.assert_allclose(xyz[-1], place(depth, 39, 29), rtol=1e-5)
    colours = np.stack([vertices[c] for c in ("red", "green", "blue")], -1)
    np.testing.assert_array_equal(colours[-1], photo.pixels[29, 39])
    facts = json.loads(next(c for c in data.comments if c.startswith("vlm3 ")).removeprefix("vlm3 "))
    assert (facts["kind"], facts["camera"]["width"], facts["unit"]) == ("z", 40, "metres")


def test_ply_of_points_alone(depth, photo):
    data = plyfile.PlyData.read(io.BytesIO(ply.encode_depth(dataclasses.replace(depth, dense=None), photo)))
    vertices = data["vertex"]
    assert vertices.count == 2
    np.testing.assert_allclose([vertices[axis][1] for axis in "xyz"], place(depth, 39, 29), rtol=1e-5)
    assert tuple(vertices[1])[3:] == tuple(photo.pixels[29, 39])


def test_glb_is_a_surface_that_is_cut_where_depth_jumps(depth, photo):
    scene = trimesh.load(io.BytesIO(glb.encode_depth(depth, photo)), file_type="glb")
    (mesh,) = scene.geometry.values()
    assert len(mesh.vertices) == 40 * 30 - 1
    # y is up and z backward in glTF.
    np.testing.assert_allclose(mesh.vertices[-1], place(depth, 39, 29) * [1, -1, -1], rtol=1e-5)
    depths = -mesh.vertices[mesh.faces][..., 2]
    # Cells across the border of the box have no triangle, all others two, but for those at the unknown pixel.
    assert set(np.ptp(depths, axis=1).round(3)) == {0}
    box, wall = (depths[:, 0] < 3).sum(), (depths[:, 0] > 3).sum()
    assert box == 2 * 15 * 9
    # Cells that touch the box lie in columns 7 to 23 and rows 9 to 19; those at two of its corners keep one triangle.
    assert wall == 2 * 39 * 29 - 2 * 17 * 11 + 2 - 1
    # Triangles face the camera, which stands in the origin.
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert (np.einsum("ni,ni->n", normals, -corners.mean(1)) > 0).all()
    texture = mesh.visual.material.baseColorTexture
    assert texture.size == (40, 30)
    # A vertex is in the middle of its pixel; trimesh counts v from below.
    np.testing.assert_allclose(mesh.visual.uv[-1], [39.5 / 40, 1 - 29.5 / 30], atol=1e-6)
    tree = header(glb.encode_depth(depth, photo))
    assert tree["asset"]["extras"]["kind"] == "z"
    assert tree["meshes"][0]["extras"]["camera"]["source"] == "EXIF"


def test_glb_of_points_alone(depth, photo):
    data = glb.encode_depth(dataclasses.replace(depth, dense=None), photo)
    (points,) = trimesh.load(io.BytesIO(data), file_type="glb").geometry.values()
    np.testing.assert_allclose(points.vertices[1], place(depth, 39, 29) * [1, -1, -1], rtol=1e-5)
    assert header(data)["meshes"][0]["primitives"][0]["mode"] == glb.POINTS


def test_glb_is_laid_out_as_the_specification_says(depth, photo):
    data = glb.encode_depth(depth, photo)
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    tree = header(data)
    assert all(view["byteOffset"] % 4 == 0 for view in tree["bufferViews"])
    assert len(data) % 4 == 0
    position = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert {"min", "max"} <= position.keys()
    indices = tree["accessors"][tree["meshes"][0]["primitives"][0]["indices"]]
    assert indices["componentType"] == glb.UINT32


def header(data: bytes) -> dict:
    size, kind = struct.unpack_from("<II", data, 12)
    assert kind == glb.JSON_CHUNK
    return json.loads(data[20 : 20 + size])


def test_nothing_readable_still_makes_files(depth, photo):
    nothing = dataclasses.replace(depth, distance_m=np.full(3, np.nan), dense=None)
    assert plyfile.PlyData.read(io.BytesIO(ply.encode_depth(nothing, photo)))["vertex"].count == 0
    tree = header(glb.encode_depth(nothing, photo))
    # glTF knows no empty accessor: there is no mesh then.
    assert "meshes" not in tree
    dense = dataclasses.replace(depth.dense, distance_m=np.full((30, 40), np.nan, np.float32))
    assert "meshes" not in header(glb.encode_depth(dataclasses.replace(depth, dense=dense), photo))


def test_large_maps_have_fewer_vertices(depth, photo, monkeypatch):
    monkeypatch.setattr(cloud, "MOST_VERTICES", 100)
    found = cloud.of_depth(depth, photo.pixels)
    assert len(found.points_m) <= 150
    # The surface reaches the edges of the image.
    np.testing.assert_allclose(found.uv.max(0), [39.5 / 40, 29.5 / 30], rtol=1e-6)


def test_colmap(pose, photo, tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    for name, data in colmap_text.files(pose, [photo, photo]).items():
        (tmp_path / name).write_bytes(data)
    model = pycolmap.Reconstruction(tmp_path)
    first, second = sorted(model.images.values(), key=lambda image: image.image_id)
    assert (first.name, second.name) == ("1/a_photo.jpg", "2/a_photo.jpg")
    np.testing.assert_allclose(first.cam_from_world().matrix(), np.eye(4)[:3], atol=1e-9)
    cam2_T_cam1 = np.vstack([second.cam_from_world().matrix(), [0, 0, 0, 1]])
    np.testing.assert_allclose(np.linalg.inv(cam2_T_cam1), pose.cam1_T_cam2(), atol=1e-9)
    camera = model.cameras[second.camera_id]
    assert camera.model.name == "PINHOLE"
    # COLMAP counts from the corner of the first pixel.
    assert camera.params.tolist() == [36, 36, 20.5, 15.5]


def test_colmap_needs_a_pose(pose, photo):
    lost = dataclasses.replace(pose, direction=np.full(3, np.nan))
    with pytest.raises(UserError, match="the model's answers give no pose"):
        colmap_text.files(lost, [photo, photo])
    unknown = dataclasses.replace(pose, distance_m=np.nan)
    assert b"the length of the motion" in colmap_text.files(unknown, [photo, photo])["images.txt"]
