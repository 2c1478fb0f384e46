"""RealEstate10K: pairs of frames of walks through houses, with cameras and poses and without any depth."""

import pathlib
import random

from vlm3_jax.builders import common
from vlm3_jax.formats.realestate10k import camera_of, read_clip
from vlm3_jax.records import Record, View

# Pairs of a clip: 68,000 training clips give the 880,000 that the paper counts.
PAIRS = 13
# How far the two frames are apart, as a part of the clip.
GAPS = (1 / 16, 1 / 3)
LEAST_GAP = 2
IMAGES = (".png", ".jpg", ".jpeg")


class RealEstate10K(common.Builder):
    """Two frames of a clip an item; rows of the text file hold camera (parts of the image's sides) and world-to-camera.

    Only frames that are there as images are paired. Which frames: drawn for every clip, seeded by its name, 1/16 to 1/3
    of the clip apart. Poses have no scale (`metric` is false), and without depth there is no covisibility. A principal
    point of 0.5 is the middle of the image, so (W - 1) / 2 from the centre of the first pixel.
    """

    name = "realestate10k"
    title = "RealEstate10K"
    folder = "pairs"
    splits = ("train", "test")
    held_out = "test"
    layout = "SPLIT/CLIP.txt and frames in frames/SPLIT/CLIP/MICROSECONDS.{png,jpg} (or SPLIT/CLIP/)"
    labels = "relative pose up to scale"
    licence = "CC BY 4.0 (camera poses), google.github.io/realestate10k; the videos are YouTube's"
    doubts = (
        "which pairs the paper takes is not published",
        "half a pixel of the principal point (normalised coordinates)",
        "rows are timestamp, fx, fy, cx, cy, 0, 0 and 12 numbers; the two zeros are ignored",
    )
    test = "tests/builders/test_realestate10k.py"

    def frames(self, raw: pathlib.Path, split: str) -> list[common.Item]:
        """The pairs of all clips."""
        common.need_files([raw / split])
        items = []
        for text in sorted((raw / split).glob("*.txt")):
            folder = _images(raw, split, text.stem)
            ends = {path.stem: path.suffix for path in folder.iterdir() if path.suffix in IMAGES} if folder else {}
            times = sorted((stem for stem in ends if stem.isdigit()), key=int)
            scene, clip, where = text.stem, f"{split}/{text.name}", folder and folder.relative_to(raw).as_posix()
            # There are a million items: those of a clip share what they have in common, and their keys name the frames.
            shared = {}
            for first, second in draw_pairs(text.stem, len(times)):
                one, other = times[first], times[second]
                suffixes = ends[one], ends[other]
                data = shared.setdefault(suffixes, {"clip": clip, "folder": where, "suffixes": list(suffixes)})
                items.append(common.Item(f"{scene}/{one}-{other}", scene, data))
        return common.by_key(items)

    def record(self, raw: pathlib.Path, item: common.Item) -> Record:
        """Two posed views."""
        rows = read_clip(raw / item.data["clip"])
        views = []
        for time, suffix in zip(item.key.rpartition("/")[2].split("-"), item.data["suffixes"], strict=True):
            name = time + suffix
            image = common.image(raw / item.data["folder"] / name, f"{item.data['clip']} {name}")
            row = rows.get(int(time))
            if row is None:
                raise common.Skip(f"{item.data['clip']} has no row of frame {name}")
            views.append(View(image, *camera_of(row, image.width, image.height, f"{item.key}: {name}")))
        return Record(item.key, tuple(views), metric=False, scene=item.scene)


def _images(raw: pathlib.Path, split: str, clip: str) -> pathlib.Path | None:
    """The folder of a clip's frames; None if there is none."""
    places = (raw / "frames" / split / clip, raw / split / clip, raw / "frames" / clip)
    return next((place for place in places if place.is_dir()), None)


def draw_pairs(clip: str, count: int) -> list[tuple[int, int]]:
    """Up to `PAIRS` pairs (i < j) of `count` frames, the same for the same name and count."""
    rng = random.Random(clip)
    low = max(LEAST_GAP, round(count * GAPS[0]))
    high = min(count - 1, max(low, round(count * GAPS[1])))
    if low > high:
        return []
    drawn = set()
    for _ in range(PAIRS):
        gap = rng.randint(low, high)
        first = rng.randrange(count - gap)
        drawn.add((first, first + gap))
    return sorted(drawn)
