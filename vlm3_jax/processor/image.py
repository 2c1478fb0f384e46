"""From a view to uint8 patches: sizes, grids and indices are known without pixels, which are decoded later.

Follows transformers' Qwen2VL image processor (PIL) and Qwen3-VL's vision tower: same sizes, same pixels before
normalisation, same patch order. Normalisation happens on the device, so patches travel as bytes.
Patches come in merge-block order: the merge x merge patches of one visual token are neighbours.
"""

import dataclasses
import functools
import importlib
import math
import pathlib

import numpy as np
from PIL import Image

from vlm3_jax import marker
from vlm3_jax.camera import Camera
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import Fields
from vlm3_jax.model.config import IMAGE_PROCESSOR, model_fields, normalisation, processor_fields
from vlm3_jax.records import MAX_IMAGE_PIXELS, ImageRef, View
from vlm3_jax.shapes import UInt8

MAX_ASPECT = 200
BLANK = 128


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """What the vision tower expects of an image; sizes in pixels, `table_side` in positions.

    `min_pixels` and `max_pixels` bound the area after resizing; `mean` and `std` are of values in [0, 1].
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    table_side: int

    @property
    def factor(self) -> int:
        """Side of a visual token in pixels: image sizes are multiples of it."""
        return self.patch_size * self.merge_size

    @classmethod
    def of(cls, cfg, low: int = 1, high: int = 2**30) -> "VisionSpec":
        """Of a VLMConfig, with bounds on an image's area in pixels."""
        v = cfg.vision
        return cls(v.patch_size, v.merge_size, v.temporal_patch_size, low, high, cfg.mean, cfg.std, v.table_side)

    @classmethod
    def from_dir(cls, model_dir) -> "VisionSpec":
        """From the config.json and image processor settings of an HF directory; UserError if one is missing."""
        model_dir = pathlib.Path(model_dir)
        vision = model_fields(model_dir, "vision_config").child("vision_config")
        processor = processor_fields(model_dir, *IMAGE_PROCESSOR)
        low, high = pixel_bounds(processor, f"{model_dir}: the image processor config")
        if missing := [name for name in ("image_mean", "image_std") if name not in processor]:
            raise UserError(f"{model_dir}: the image processor config names no {' and no '.join(missing)}")
        mean, std = normalisation(processor)
        return cls(
            patch_size=vision.integer("patch_size"),
            merge_size=vision.integer("spatial_merge_size"),
            temporal_patch_size=vision.integer("temporal_patch_size"),
            min_pixels=low,
            max_pixels=high,
            mean=mean,
            std=std,
            table_side=math.isqrt(vision.integer("num_position_embeddings")),
        )


def pixel_bounds(processor: Fields, what: str) -> tuple[int, int]:
    """The smallest and largest number of pixels that a processor's settings name; UserError (with `what`) if none."""
    size = processor.child("size", {})
    places = (
        (processor, "min_pixels", "max_pixels"),
        (size, "shortest_edge", "longest_edge"),
        (size, "min_pixels", "max_pixels"),
    )
    low, high = (next((f.integer(names[end]) for f, *names in places if names[end] in f), None) for end in (0, 1))
    if low is None or high is None:
        raise UserError(f"{what} names no smallest and largest number of pixels")
    if low > high:
        raise UserError(f"{processor.name}: the smallest number of pixels, {low:,}, is above the largest, {high:,}")
    return low, high


def smart_resize(height: int, width: int, spec: VisionSpec, name: str = "image") -> tuple[int, int]:
    """The (height, width) that Qwen's processor resizes to: multiples of `spec.factor`, area within the bounds.

    Rounds half to even; above the bounds it floors, below it ceils. BadRecord (with `name`) above an aspect of 200.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BadRecord(f"{name}: {width} x {height} pixels has an aspect ratio above {MAX_ASPECT}")
    factor = spec.factor
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > spec.max_pixels:
        shrink = math.sqrt(height * width / spec.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


class Patches:
    """Patches that attend to each other: `grid` (rows, columns), of which merge x merge make a visual token."""

    grid: tuple[int, int]
    merge_size: int

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def n_visual(self) -> int:
        """Number of visual tokens."""
        return self.n_patches // self.merge_size**2


@dataclasses.dataclass(frozen=True, eq=False)
class ImageLayout(Patches):
    """All that is known of an image before its pixels are read.

    `size` (w, h): the whole image at the unified focal length; `crop` (left, top, right, bottom) or None: the part of
    it that is shown; `final` (w, h): what the vision tower sees; `grid` (rows, columns) of patches. `flip` mirrors the
    decoded pixels left to right, `marker` (x, y) draws an arrow that points at that pixel of what is shown, `blank`
    replaces every value by 128 (the reference of a model that sees nothing). `resized`: the image is stored after both
    resizes (`View.final`); if its size is `final`, it is only decoded. `patches`: what `load` gives, where somebody has
    loaded them already.
    """

    ref: ImageRef
    size: tuple[int, int]
    final: tuple[int, int]
    grid: tuple[int, int]
    merge_size: int
    crop: tuple[int, int, int, int] | None = None
    flip: bool = False
    blank: bool = False
    resized: bool = False
    marker: tuple[int, int] | None = None
    patches: np.ndarray | None = None

    def loaded(self, spec: VisionSpec) -> "ImageLayout":
        """With its patches, so that another thread than the one that needs them can decode. BadRecord as in `load`."""
        return dataclasses.replace(self, patches=self.load(spec))

    def load(self, spec: VisionSpec) -> UInt8[np.ndarray, "P X"]:
        """Decode, resize and cut: uint8 [n_patches, 3 * patch_size**2], (channel, y, x) inside a patch.

        An image of another stored size than the layout's own (a shuffled-image reference) is resized alike. BadRecord
        if the image cannot be read.
        """
        if self.patches is not None:
            return self.patches
        if self.blank:
            return np.full((self.n_patches, 3 * spec.patch_size**2), BLANK, np.uint8)
        if compiled() is not None:
            return self._load_compiled(spec)
        return patchify(self.shown(), spec)

    def _load_compiled(self, spec: VisionSpec) -> UInt8[np.ndarray, "P X"]:
        """The same, faster."""
        code = compiled()
        pixels = self.ref.picture(code.decode_jpeg)
        pixels = self._mirrored(pixels if isinstance(pixels, np.ndarray) else code.pixels_of(pixels))
        if not self._is_final:
            pixels = code.resize(pixels, *self.size)
            if self.crop is not None:
                left, top, right, bottom = self.crop
                pixels = pixels[top:bottom, left:right]
            if self.marker is not None:
                pixels = marker.drawn(pixels, self.marker)
            pixels = code.resize(pixels, *self.final)
        return code.patchify(pixels, spec.patch_size, spec.merge_size)

    @property
    def _is_final(self) -> bool:
        """Whether the image is stored as the vision tower sees it."""
        untouched = self.crop is None and self.marker is None
        return self.resized and untouched and (self.ref.width, self.ref.height) == self.final

    def shown(self) -> UInt8[np.ndarray, "height width 3"]:
        """The pixels that the vision tower sees, [H, W, 3] of the size `final`. BadRecord as in `load`."""
        if self._is_final:
            return self._mirrored(self.ref.load())
        image = self.picture()
        if image.size != self.final:
            image = image.resize(self.final, Image.Resampling.BICUBIC)
        return np.asarray(image)

    def picture(self) -> Image.Image:
        """What is shown of the image, before its sides become multiples of a visual token. BadRecord as in `load`."""
        image = self.ref.picture()
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if image.size != self.size:
            image = image.resize(self.size, Image.Resampling.BICUBIC)
        if self.crop is not None:
            image = image.crop(self.crop)
        return image if self.marker is None else marker.drawn(image, self.marker)

    def _mirrored(self, pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(pixels[:, ::-1]) if self.flip else pixels


def image_layout(view: View, spec: VisionSpec, marker: tuple[int, int] | None = None) -> ImageLayout:
    """The layout of a unified view: its camera says what size the image has when it is shown.

    `marker`: a pixel of that view which an arrow points at.
    """
    camera = view.camera
    if camera.width * camera.height > MAX_IMAGE_PIXELS:
        size = f"{camera.width} x {camera.height} pixels"
        raise BadRecord(f"{view.image.name}: resized, it would have {size}, above {MAX_IMAGE_PIXELS}")
    height, width = smart_resize(camera.height, camera.width, spec, view.image.name)
    size, crop = (camera.width, camera.height), None
    if view.crop is not None:
        left, top, *size = view.crop
        crop = (left, top, left + camera.width, top + camera.height)
    return ImageLayout(
        ref=view.image,
        size=tuple(size),
        final=(width, height),
        grid=(height // spec.patch_size, width // spec.patch_size),
        merge_size=spec.merge_size,
        crop=crop,
        flip=view.flip,
        resized=view.final,
        marker=marker,
    )


@functools.cache
def compiled():
    """The module of machine code; None if what it needs is not installed, or Pillow's values are not its own."""
    try:
        module = importlib.import_module("vlm3_jax.processor.compiled")
        module.check()
        return module
    except ImportError:
        return None


def patchify(pixels: UInt8[np.ndarray, "height width 3"], spec: VisionSpec) -> UInt8[np.ndarray, "P X"]:
    """uint8 [H, W, 3], sides multiples of `spec.factor` -> uint8 [n_patches, 3 * patch_size**2], merge-block order."""
    side, merge = spec.patch_size, spec.merge_size
    rows, columns = pixels.shape[0] // spec.factor, pixels.shape[1] // spec.factor
    blocks = pixels.reshape(rows, merge, side, columns, merge, side, 3)
    return blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns * merge**2, 3 * side**2)


@functools.lru_cache(maxsize=128)
def patch_positions(grid: tuple[int, int], spec: VisionSpec) -> np.ndarray:
    """Row and column of each patch in merge-block order, int32 [n_patches, 2] (read-only, cached)."""
    rows, columns, merge = *grid, spec.merge_size
    index = np.stack(np.indices(grid, np.int32), -1)
    blocks = index.reshape(rows // merge, merge, columns // merge, merge, 2)
    return _frozen(blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2))


@functools.lru_cache(maxsize=128)
def table_lookup(grid: tuple[int, int], spec: VisionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Where and how much each patch reads of the learned position table: int32 [n, 4] and float32 [n, 4].

    Bilinear with aligned corners: patch i of n sits at i * (side - 1) / (n - 1) of the table; merge-block order,
    read-only, cached. float32 throughout, so that a patch on a table point picks the same neighbours as transformers.
    """
    position = patch_positions(grid, spec)
    scale = np.maximum(np.asarray(grid) - 1, 1).astype(np.float32)
    source = position.astype(np.float32) * np.float32(spec.table_side - 1) / scale
    low = np.floor(source)
    low_weight = 1 - (source - low)
    weight = np.stack([low_weight, 1 - low_weight], -1)
    low = low.astype(np.int32)
    tap = np.stack([low, np.minimum(low + 1, spec.table_side - 1)], -1)
    index = tap[:, 0, :, None] * spec.table_side + tap[:, 1, None, :]
    weights = weight[:, 0, :, None] * weight[:, 1, None, :]
    return _frozen(index.reshape(-1, 4)), _frozen(weights.reshape(-1, 4))


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def fit_camera(camera: Camera, spec: VisionSpec, max_patches: int) -> Camera:
    """The camera of the largest centre crop, of about the same aspect, that has at most `max_patches` patches.

    The camera itself if its image fits. A crop keeps the focal length, and with it the metric scale, which a resize
    would break; use it with `records.with_cameras`, then `records.keep_inside`. BadRecord if even a crop is
    resized above `max_patches` (a budget close to the processor's smallest image).
    """
    if _count_patches(camera, spec) <= max_patches:
        return camera
    factor, units = spec.factor, max_patches // spec.merge_size**2
    shrink = math.sqrt(units * factor**2 / (camera.height * camera.width))
    rows = min(max(1, int(camera.height * shrink / factor)), max(1, units))
    columns = min(max(1, int(camera.width * shrink / factor)), max(1, units // rows))
    width, height = min(columns * factor, camera.width), min(rows * factor, camera.height)
    crop = camera.crop((camera.width - width) // 2, (camera.height - height) // 2, width, height)
    if _count_patches(crop, spec) > max_patches:
        raise BadRecord(
            f"an image of {camera.width} x {camera.height} pixels cannot be cropped to {max_patches} patches: the "
            f"image processor enlarges small images to {spec.min_pixels} pixels; give rows more room "
            "(data.row_tokens, data.row_patches, and the lists of blocks where they are used)"
        )
    return crop


def _count_patches(camera: Camera, spec: VisionSpec) -> int:
    height, width = smart_resize(camera.height, camera.width, spec)
    return height * width // spec.patch_size**2
