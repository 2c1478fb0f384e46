"""A depth answer as a binary glTF 2.0: the photo as a surface in metres, or its points; y is up and -z forward there.

Source: the glTF 2.0 specification (Khronos): chunks, accessors, buffer views; KHR_materials_unlit, since the photo has
its light in it.
"""

import io
import json
import struct

import numpy as np
from PIL import Image

from vlm3_jax.answers import cloud
from vlm3_jax.answers.values import Depth, depth_facts

# glTF's numbers for component types, buffer targets and primitives.
FLOAT, UINT32, UINT8 = 5126, 5125, 5121
ARRAY, ELEMENTS = 34962, 34963
POINTS, TRIANGLES = 0, 4
TEXTURE_SIDE = 4096
JSON_CHUNK, BIN_CHUNK = 0x4E4F534A, 0x004E4942


def encode_depth(depth: Depth, photo) -> bytes:
    """One mesh: triangles with the photo as texture of a dense map, else coloured points. `extras` hold the facts."""
    found, buffer = cloud.of_depth(depth, photo.pixels), _Buffer()
    facts = {"kind": depth.kind, "image": photo.name} | depth_facts(depth)
    asset = {"version": "2.0", "generator": "vlm3_jax", "extras": facts}
    # glTF knows no empty accessor: where nothing is known there is no mesh.
    if not len(found.points_m):
        return buffer.container({"asset": asset, "scene": 0, "scenes": [{}]})
    # From x right, y down, z forward to glTF's x right, y up, z backward: a half turn about x.
    attributes = {"POSITION": buffer.array(found.points_m * np.float32([1, -1, -1]), "VEC3", ARRAY, bounds=True)}
    primitive = {"attributes": attributes, "mode": POINTS, "material": 0}
    material = {"extensions": {"KHR_materials_unlit": {}}}
    tree = {"materials": [material], "extensionsUsed": ["KHR_materials_unlit"]}
    if len(found.triangles):
        attributes["TEXCOORD_0"] = buffer.array(found.uv, "VEC2", ARRAY)
        primitive |= {"mode": TRIANGLES, "indices": buffer.array(found.triangles.reshape(-1), "SCALAR", ELEMENTS)}
        tree["images"] = [{"bufferView": buffer.view(_texture(photo.pixels)), "mimeType": "image/jpeg"}]
        tree["textures"] = [{"source": 0}]
        material |= {"doubleSided": True}
        material["pbrMetallicRoughness"] = {"baseColorTexture": {"index": 0}, "metallicFactor": 0}
    else:
        attributes["COLOR_0"] = buffer.array(_linear(found.colours), "VEC3", ARRAY)
    tree |= {"asset": asset, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}
    return buffer.container(tree | {"meshes": [{"primitives": [primitive], "extras": facts}]})


class _Buffer:
    """The one buffer of a .glb: views on it, each on a boundary of 4 bytes, and accessors of them."""

    def __init__(self):
        self._parts: list[bytes] = []
        self._size, self._views, self._accessors = 0, [], []

    def view(self, data: bytes, target: int | None = None) -> int:
        """Its number."""
        self._views.append({"buffer": 0, "byteOffset": self._size, "byteLength": len(data)})
        if target is not None:
            self._views[-1]["target"] = target
        data += bytes(-len(data) % 4)
        self._parts.append(data)
        self._size += len(data)
        return len(self._views) - 1

    def array(self, values: np.ndarray, kind: str, target: int, bounds: bool = False) -> int:
        """The number of the accessor of an array, float32 or, of whole numbers, uint32."""
        whole = values.dtype.kind in "iu"
        values = np.ascontiguousarray(values, np.dtype("<u4" if whole else "<f4"))
        view = self.view(values.tobytes(), target)
        accessor = {"bufferView": view, "componentType": UINT32 if whole else FLOAT, "count": len(values), "type": kind}
        if bounds and len(values):
            accessor |= {"min": values.min(0).tolist(), "max": values.max(0).tolist()}
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def container(self, tree: dict) -> bytes:
        """The file: header, JSON, buffer."""
        if self._parts:
            tree |= {"buffers": [{"byteLength": self._size}], "bufferViews": self._views, "accessors": self._accessors}
        text = json.dumps(tree, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), JSON_CHUNK) + text
        if self._parts:
            chunks += struct.pack("<II", self._size, BIN_CHUNK) + b"".join(self._parts)
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _texture(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _linear(colours: np.ndarray) -> np.ndarray:
    """sRGB bytes as the linear light that colours of vertices are in, float32."""
    value = colours.astype(np.float32) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)
