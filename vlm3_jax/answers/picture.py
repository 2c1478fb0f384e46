"""Answers as pictures: the photo beside its depth in colours with a scale, and matches joined across two photos."""

import io

import numpy as np
from PIL import Image, ImageDraw

from vlm3_jax.answers.values import Depth, Match
from vlm3_jax.records.colours import depth_colours, depth_range

# A photo's longer side in the picture.
SIDE = 960
LINES = ("gold", "deepskyblue", "lawngreen", "hotpink", "darkorange", "mediumpurple", "aquamarine", "white")
_INK, _PAPER = (30, 30, 30), (250, 250, 250)
_GAP = 8


def encode_depth(depth: Depth, photo) -> bytes:
    """PNG: the photo, beside it the dense map or, without one, the points asked about; below the scale in metres.

    Beside a map with a spread also its deviation in per cent of the depth. Grey points have no readable answer.
    """
    shown = _small(photo.pixels)
    values = depth.map_m() if depth.dense is not None else depth.distance_m if depth.kind == "distance" else depth.z_m
    span = depth_range(values)
    if depth.dense is not None:
        right = Image.fromarray(depth_colours(_sampled(values, shown.size), span))
    else:
        right = _dots(shown, depth, values, span, shown.width / photo.pixels.shape[1])
    panels = [(right, span, f"m {depth.kind}")]
    if (share := depth.relative_deviation()) is not None:
        # How unsure the model is does not hang on how far off its answer is: of the median.
        of_share = depth_range(100 * share)
        colours = depth_colours(_sampled(100 * share, shown.size), of_share)
        panels.append((Image.fromarray(colours), of_share, "% deviation"))
    step = shown.width + _GAP
    sheet = Image.new("RGB", (_GAP + step * (1 + len(panels)), shown.height + 2 * _GAP + 40), _PAPER)
    sheet.paste(shown, (_GAP, _GAP))
    for number, (panel, its_span, unit) in enumerate(panels, 1):
        sheet.paste(panel, (_GAP + number * step, _GAP))
        _scale(sheet, _GAP + number * step, shown.height + 2 * _GAP, shown.width, its_span, unit)
    return _png(sheet)


def encode_match(match: Match, photos) -> bytes:
    """PNG: both photos side by side; a line joins each point with its match, a cross marks one without."""
    first, second = (_small(photo.pixels) for photo in photos)
    sheet = Image.new("RGB", (first.width + second.width + 3 * _GAP, max(first.height, second.height) + 2 * _GAP))
    sheet.paste(first, (_GAP, _GAP))
    offset = first.width + 2 * _GAP
    sheet.paste(second, (offset, _GAP))
    canvas = ImageDraw.Draw(sheet)
    scales = [small.width / photo.pixels.shape[1] for small, photo in zip((first, second), photos)]
    for number, (a, b) in enumerate(zip(match.points_px, match.matches_px, strict=True)):
        colour = LINES[number % len(LINES)]
        x, y = (a + 0.5) * scales[0] + _GAP
        if np.isfinite(b).all():
            u, v = b * scales[1] + (offset, _GAP)
            canvas.line((x, y, u, v), fill=colour, width=1)
            canvas.ellipse((u - 3, v - 3, u + 3, v + 3), outline=colour, width=2)
            canvas.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour, width=2)
        else:
            canvas.line((x - 4, y - 4, x + 4, y + 4), fill="red", width=2)
            canvas.line((x - 4, y + 4, x + 4, y - 4), fill="red", width=2)
    return _png(sheet)


def _small(pixels: np.ndarray) -> Image.Image:
    """The photo with its longer side at `SIDE` px; small ones are enlarged by a whole number, so that labels fit."""
    image = Image.fromarray(pixels)
    longer = max(image.size)
    if longer > SIDE:
        scale = SIDE / longer
        return image.resize([max(1, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)
    whole = max(1, SIDE // 2 // longer)
    return image.resize([n * whole for n in image.size], Image.Resampling.NEAREST)


def _sampled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map at the size of the picture, nothing mixed across edges."""
    rows = (np.arange(size[1]) + 0.5) * values.shape[0] / size[1]
    columns = (np.arange(size[0]) + 0.5) * values.shape[1] / size[0]
    return values[np.ix_(rows.astype(int), columns.astype(int))]


def _dots(shown: Image.Image, depth: Depth, values, span, scale: float) -> Image.Image:
    """The photo, dimmed, with a dot a point, and its metres where there is room for the text."""
    dimmed = Image.fromarray((np.asarray(shown) * 0.55).astype(np.uint8))
    canvas = ImageDraw.Draw(dimmed)
    places = (depth.points_px + 0.5) * scale
    roomy = len(places) <= shown.width * shown.height / 3600
    radius = 4 if roomy else 2
    colours = depth_colours(np.asarray(values)[None], span)[0]
    for (x, y), value, colour in zip(places, values, colours, strict=True):
        known = np.isfinite(value)
        ring = (x - radius, y - radius, x + radius, y + radius)
        canvas.ellipse(ring, fill=tuple(colour.tolist()) if known else (128, 128, 128), outline=(255, 255, 255))
        if roomy:
            text = f"{value:.2f}" if known else "?"
            canvas.text((x, y + radius + 1), text, fill=(255, 255, 255), anchor="ma", font_size=12)
    return dimmed


def _scale(sheet: Image.Image, left: int, top: int, width: int, span, unit: str) -> None:
    """A bar of the colours from small to large with numbers below it, and their unit."""
    canvas = ImageDraw.Draw(sheet)
    if span is None:
        canvas.text((left, top), "no readable answer", fill=_INK, font_size=13)
        return
    low, high = np.log(span)
    bar = depth_colours(np.exp(np.linspace(low, high, width))[None].repeat(14, 0), span)
    sheet.paste(Image.fromarray(bar), (left, top))
    # The last number has its unit beside it.
    count = max(2, min(6, width // 120))
    for place in np.linspace(0, 1, count):
        anchor = "la" if place == 0 else "ra" if place == 1 else "ma"
        text = f"{np.exp(low + place * (high - low)):.2f}" + (f" {unit}" if place == 1 else "")
        canvas.text((left + place * (width - 1), top + 17), text, fill=_INK, anchor=anchor, font_size=13)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
