"""Pictures of records and samples: images with their labels, depth maps in colours, epipolar lines of matches."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vlm3_jax.camera import Camera
from vlm3_jax.data.samples import Sample
from vlm3_jax.processor.image import ImageLayout, VisionSpec
from vlm3_jax.records import DepthMap, Matches, Record
from vlm3_jax.records.colours import depth_colours

RED = (230, 40, 40)
# Epipolar lines are drawn for so many matches, each in a colour of its own.
LINES = 8
COLOURS = ("gold", "deepskyblue", "lawngreen", "hotpink", "darkorange", "mediumpurple", "aquamarine", "white")


def shaded(colours: np.ndarray, picture: Image.Image) -> Image.Image:
    """Depth in colours [H, W, 3] lit by the picture it belongs to, so that edges of both are seen; grey without depth.

    The picture is resized to the map.
    """
    grey = picture.convert("L").resize(colours.shape[1::-1], Image.Resampling.BILINEAR)
    light = np.asarray(grey, np.float32)[..., None] / 255
    there = colours.any(-1, keepdims=True)
    return Image.fromarray(np.where(there, colours * (0.4 + 0.6 * light), 110 * light).astype(np.uint8))


def draw_sample(sample: Sample, spec: VisionSpec, depth_maps: tuple[DepthMap, ...] = ()) -> Image.Image:
    """The sample's images side by side as the model sees them, with its labels; below them the stored depth maps.

    Small images are enlarged by a whole number, so that the labels stay legible.
    """
    pictures = [Image.fromarray(pixels(layout, spec)) for layout in sample.images]
    maps = {stored.view: stored for stored in depth_maps}
    below = [_as_seen(maps.get(view), layout) for view, layout in zip(sample.views, sample.images, strict=True)]
    cameras = [sample.record.views[view].camera for view in sample.views]
    return _sheet(sample.record, sample.views, cameras, pictures, below, least=1024)


def draw_record(record: Record, side: int = 480) -> Image.Image:
    """A stored record likewise, its longer side of `side` px; BadRecord if an image or a map cannot be read."""
    pictures, below, maps = [], [], {stored.view: stored for stored in record.depth_maps}
    for number, view in enumerate(record.views):
        picture = Image.fromarray(view.image.load())
        scale = side / max(picture.size)
        size = tuple(max(1, round(n * scale)) for n in picture.size)
        pictures.append(picture.resize(size, Image.Resampling.BICUBIC))
        lit = maps.get(number) and shaded(depth_colours(maps[number].load()), picture)
        below.append(lit and lit.resize(size, Image.Resampling.NEAREST))
    return _sheet(record, range(len(record.views)), record.cameras, pictures, below)


def contact_sheet(records: dict[str, Sequence[Record]], columns: int = 2) -> Image.Image:
    """A few records of each component, below its name."""
    font, rows = 14, []
    for name, some in records.items():
        drawn = [draw_record(record) for record in some if record.views]
        rows += [name] + [drawn[k : k + columns] for k in range(0, len(drawn), columns)]
    heights = [font + 6 if isinstance(row, str) else max(picture.height for picture in row) + 6 for row in rows]
    width = max((sum(p.width + 6 for p in row) for row in rows if not isinstance(row, str)), default=200)
    sheet = Image.new("RGB", (width, sum(heights, 6)), (40, 40, 40))
    canvas, top = ImageDraw.Draw(sheet), 3
    for row, height in zip(rows, heights):
        if isinstance(row, str):
            canvas.text((6, top), row, fill=(255, 255, 255), font_size=font)
        else:
            for number, picture in enumerate(row):
                sheet.paste(picture, (3 + sum(p.width + 6 for p in row[:number]), top))
        top += height
    return sheet


def _as_seen(stored: DepthMap | None, layout: ImageLayout) -> Image.Image | None:
    """A map in colours, mirrored, cut and resized as the image of its view is."""
    if stored is None:
        return None
    lit = shaded(depth_colours(stored.load()), Image.fromarray(layout.ref.load()))
    picture = lit.resize(layout.size, Image.Resampling.NEAREST)
    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if layout.flip else picture
    picture = picture.crop(layout.crop) if layout.crop else picture
    return picture.resize(layout.final, Image.Resampling.NEAREST)


def _sheet(record: Record, views, cameras: list[Camera], pictures, below, least: int = 1) -> Image.Image:
    """The pictures of `views` with the labels of the record, and what is below each (or None)."""
    if not pictures:
        return Image.new("RGB", (64, 16))
    zoom = max(1, least // max(max(picture.size) for picture in pictures))
    sizes = [(picture.width * zoom, picture.height * zoom) for picture in pictures]
    lefts = np.cumsum([0, *(width for width, _ in sizes)]).tolist()
    top = max(height for _, height in sizes)
    sheet = Image.new("RGB", (lefts[-1], top * (2 if any(below) else 1)))
    for left, size, picture, other in zip(lefts, sizes, pictures, below):
        sheet.paste(picture.resize(size, Image.Resampling.NEAREST), (left, 0))
        if other is not None:
            sheet.paste(other.resize(size, Image.Resampling.NEAREST), (left, top))
    canvas, numbers = ImageDraw.Draw(sheet), list(views)

    def place(view: int, points) -> np.ndarray:
        slot = numbers.index(view)
        scale = np.divide(sizes[slot], (cameras[slot].width, cameras[slot].height))
        return np.reshape(points, (-1, 2)) * scale + [lefts[slot], 0]

    for label in record.labels:
        if set(label.views) <= set(numbers):
            label.draw(canvas, place, RED)
            if isinstance(label, Matches):
                _draw_epipolar(canvas, place, record, label)
    return sheet


def _draw_epipolar(canvas, place, record: Record, matches: Matches) -> None:
    """For some matches the line in the second view on which the first view's pixel must lie, by the poses."""
    poses = [view.world_T_cam for view in record.views[:2]]
    if any(pose is None for pose in poses) or not len(matches.points0_px):
        return
    first, second = record.cameras[:2]
    cam1_T_cam0 = np.linalg.inv(np.asarray(poses[1], np.float64)) @ np.asarray(poses[0], np.float64)
    chosen = np.unique(np.linspace(0, len(matches.points0_px) - 1, LINES).astype(int))
    rays = first.rays(np.asarray(matches.points0_px)[chosen])
    for number, ray in enumerate(rays):
        ends = _segment(cam1_T_cam0, ray, second)
        colour = COLOURS[number % len(COLOURS)]
        if ends is not None:
            canvas.line(place(1, ends).ravel().tolist(), fill=colour, width=2)
        for view, points in ((0, matches.points0_px), (1, matches.points1_px)):
            x, y = place(view, np.asarray(points)[chosen[number]])[0]
            canvas.ellipse((x - 4, y - 4, x + 4, y + 4), outline=colour, width=2)


def _segment(cam1_T_cam0: np.ndarray, ray: np.ndarray, camera: Camera) -> np.ndarray | None:
    """Where the second image's frame cuts the picture of a ray of the first view, px [2, 2]; None if it shows none."""
    t, direction = cam1_T_cam0[:3, 3], cam1_T_cam0[:3, :3] @ ray
    a, b, c = np.linalg.inv(camera.matrix).T @ np.cross(t, direction)
    right, bottom = camera.width - 1, camera.height - 1
    points = [(x, -(a * x + c) / b) for x in (0, right) if b] + [(-(b * y + c) / a, y) for y in (0, bottom) if a]
    inside = [(x, y) for x, y in points if -0.5 <= x <= right + 0.5 and -0.5 <= y <= bottom + 0.5]
    if len(inside) < 2:
        return None
    far = max(inside, key=lambda end: np.hypot(end[0] - inside[0][0], end[1] - inside[0][1]))
    return np.array([inside[0], far])


def pixels(layout: ImageLayout, spec: VisionSpec) -> np.ndarray:
    """The image as the vision tower sees it, uint8 [H, W, 3]: `image.patchify` undone."""
    rows, columns = layout.grid[0] // spec.merge_size, layout.grid[1] // spec.merge_size
    shape = rows, columns, spec.merge_size, spec.merge_size, 3, spec.patch_size, spec.patch_size
    blocks = layout.load(spec).reshape(shape)
    return blocks.transpose(0, 2, 5, 1, 3, 6, 4).reshape(layout.final[1], layout.final[0], 3)
