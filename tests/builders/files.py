"""Files as data sets encode them, for fixtures."""

import json
import pathlib

import numpy as np
from PIL import Image


def jpeg(path: pathlib.Path, rgb) -> None:
    """uint8 [H, W, 3] with hardly any loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, "JPEG", quality=98, subsampling=0)


def png(path: pathlib.Path, values) -> None:
    """uint8 [H, W, 3], [H, W], or uint16 [H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(values)).save(path, "PNG")


def text(path: pathlib.Path, content: str) -> None:
    """A text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def dump(path: pathlib.Path, tree) -> None:
    """A JSON file and its folder."""
    text(path, json.dumps(tree))


def steps(depth_m, per_metre: float, open_sky: int = 0) -> np.ndarray:
    """uint16 [H, W]: metres times `per_metre`, rounded; `open_sky` where nothing is."""
    there = np.isfinite(depth_m)
    return np.where(there, np.rint(np.where(there, depth_m, 0) * per_metre), open_sky).astype(np.uint16)
