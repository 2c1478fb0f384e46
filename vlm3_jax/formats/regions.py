"""Boxes of regions: as they are given, or around COCO run-length masks and polygons (as pycocotools has them)."""

import numpy as np

from vlm3_jax.errors import BadRecord

MAX_PIXELS = 200_000_000


def region_boxes(item: dict) -> np.ndarray:
    """The boxes [M, 4] (x1, y1, x2, y2) of an item's `bbox`, else of its `rle`, else of its `segmentation`.

    A mask's box goes from its first pixel to the edge behind its last one. BadRecord, naming the field, if they cannot
    be read.
    """
    readers = {"bbox": _box, "bboxes": _box, "rle": rle_box, "segmentation": _polygon_box}
    field = next((field for field in readers if item.get(field)), None)
    if field is None:
        return np.zeros((0, 4), np.int64)
    given = item[field]
    if not isinstance(given, list):
        raise BadRecord(f"{field}: expected a list, an entry a region")
    boxes = []
    for number, region in enumerate(given):
        try:
            boxes.append(readers[field](region))
        except (BadRecord, TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
            raise BadRecord(f"{field}[{number}]: no region ({error})") from None
    return np.array(boxes)


def _box(region) -> list[float]:
    values = np.array(region, np.float64)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise BadRecord("expected x1, y1, x2, y2")
    return values.tolist()


def _polygon_box(region) -> list[float]:
    if isinstance(region, dict):
        return rle_box(region)
    polygons = region if isinstance(region[0], list) else [region]
    points = np.concatenate([np.array(polygon, np.float64).reshape(-1, 2) for polygon in polygons])
    if not np.isfinite(points).all():
        raise BadRecord("its points are not finite")
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def rle_box(region: dict) -> list[float]:
    """The box of {"size": [h, w], "counts": text or list}: runs of 0 and 1 in turn, column by column."""
    height, width = (int(n) for n in region["size"])
    if not 0 < height * width <= MAX_PIXELS:
        raise BadRecord(f"its size is {height} x {width}")
    counts = region["counts"]
    runs = np.array(counts if isinstance(counts, list) else decoded_runs(counts), np.int64)
    ends = np.cumsum(runs)
    if (runs < 0).any() or not len(ends) or ends[-1] != height * width:
        raise BadRecord(f"its runs do not add up to {height} x {width}")
    first, last = (ends - runs)[1::2], ends[1::2] - 1
    # A run may be empty.
    there = last >= first
    first, last = first[there], last[there]
    if not len(first):
        raise BadRecord("the mask is empty")
    columns = first // height, last // height
    # A run that goes on in the next column reaches from its top to its bottom.
    whole = (columns[1] > columns[0]).any()
    top = 0 if whole else int((first % height).min())
    bottom = height - 1 if whole else int((last % height).max())
    return [int(columns[0].min()), top, int(columns[1].max()) + 1, bottom + 1]


def decoded_runs(text: str | bytes) -> list[int]:
    """COCO's compressed counts: 5 bits a character from "0" on, a sixth for more; each run less that of two before."""
    data = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    place = 0
    while place < len(data):
        value = shift = 0
        more = True
        while more:
            code = data[place] - 48
            if not 0 <= code < 64 or shift > 60:
                raise BadRecord("its counts are no run lengths")
            value |= (code & 0x1F) << shift
            more = bool(code & 0x20)
            place, shift = place + 1, shift + 5
            if not more and code & 0x10:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
