"""What stands in training and in held-out data alike is found: scenes, files, images that look the same."""

import dataclasses
import io
import json

import numpy as np
import pytest
from check_world import pair
from PIL import Image

from vlm3_jax.data.checks.image_hash import MAX_RADIUS, Index, image_hash
from vlm3_jax.data.checks.leaks import Leaks
from vlm3_jax.records import ImageRef


def picture(number, size=(160, 120)) -> np.ndarray:
    """Smooth shapes, as photos have."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC))


def as_jpeg(pixels, quality=60) -> ImageRef:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return ImageRef(pixels.shape[1], pixels.shape[0], "jpeg", data=buffer.getvalue())


def found(training, held_out):
    leaks = Leaks()
    for side, images in ((False, training), (True, held_out)):
        for number, ref in enumerate(images):
            leaks.add_image(side, f"{'held' if side else 'train'}/{number}", ref, ref.load())
    return leaks.facts()


def test_other_images_are_no_leak():
    facts = found([as_jpeg(picture(n)) for n in range(40)], [as_jpeg(picture(100 + n)) for n in range(20)])
    assert not facts.faults
    assert facts.values == {
        "training_images": 40, "held_out_images": 20, "scenes": 0, "files": 0, "near_duplicates": 0,
    }  # fmt: skip


def test_the_same_file_is_a_leak():
    images = [as_jpeg(picture(n)) for n in range(5)]
    (fault,) = found(images, [as_jpeg(picture(9)), images[3]]).faults
    assert fault == "leak: 1 image file is (held/1 is train/3) in training and held-out data alike"


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p,
        lambda p: np.asarray(Image.fromarray(p).resize((80, 60))),
        lambda p: np.clip(p.astype(int) + 20, 0, 255).astype(np.uint8),
        lambda p: np.clip(p * 0.8, 0, 255).astype(np.uint8),
        lambda p: p[1:-1, 1:-1],
    ],
    ids=["jpeg", "resized", "brighter", "darker", "trimmed"],
)
def test_near_duplicates_are_a_leak(change):
    training = [as_jpeg(picture(n), 90) for n in range(30)]
    facts = found(training, [as_jpeg(change(picture(n)), 50) for n in (7, 21)])
    assert facts.values["near_duplicates"] == 2
    assert "held/0 looks like train/7, held/1 looks like train/21" in facts.faults[0]


def test_blank_images_are_like_no_other():
    grey = [as_jpeg(np.full((50, 60, 3), value, np.uint8)) for value in (10, 120)]
    assert not found(grey, [as_jpeg(np.full((50, 60, 3), 119, np.uint8))]).faults


def test_scenes_of_one_set_are_a_leak_and_of_others_a_warning():
    def facts(*held_out):
        leaks = Leaks()
        for number in range(4):
            leaks.add_scene("rooms", False, pair(number, False, False))
        for name, number in held_out:
            leaks.add_scene(name, True, pair(number, False, False))
        return leaks.facts()

    assert not facts(("rooms", 7)).faults
    (fault,) = facts(("rooms", 7), ("rooms", 2)).faults
    assert fault == "leak: 1 scene is (scene 2) in training and held-out data of one set"
    other = facts(("streets", 3))
    assert not other.faults
    assert "1 scene is (scene 3)" in other.warnings[0]
    # A single scene can be parted by its frames only; beside another one it is a leak.
    for names, fault in (((1,), False), ((1, 2), True)):
        leaks = Leaks()
        leaks.add_scene("capture", True, pair(1, False, False))
        for number in names:
            leaks.add_scene("capture", False, pair(number, False, False))
        assert bool(leaks.facts().faults) == fault
        assert ("scene 1 is its set's one scene" in " ".join(leaks.facts().warnings)) != fault
        assert leaks.facts().values["scenes"] == 1
    # Without names nothing is known.
    leaks = Leaks()
    for side in (False, True):
        leaks.add_scene("rooms", side, dataclasses.replace(pair(0, False, False), scene=""))
    assert not leaks.facts().lines


def test_the_index_finds_what_a_scan_finds(rng):
    hashes = rng.integers(0, 2**63, 3000, dtype=np.uint64)
    index = Index(hashes)
    for number in range(40):
        wanted = int(hashes[number])
        for bit in rng.choice(64, rng.integers(0, MAX_RADIUS + 1), replace=False):
            wanted ^= 1 << int(bit)
        for radius in (0, 3, MAX_RADIUS):
            scan = np.flatnonzero(np.bitwise_count(hashes ^ np.uint64(wanted)) <= radius)
            np.testing.assert_array_equal(index.near(wanted, radius), scan)
    assert not len(Index(np.zeros(0, np.uint64)).near(5, 3))


def test_hashes_of_real_rooms_differ(samples):
    rows = [json.loads(line) for line in (samples / "ibims1" / "ibims1.jsonl").read_text().splitlines()]
    hashes = []
    for row in rows[:24]:
        with Image.open(samples / "ibims1" / row["image"].lstrip("/")) as image:
            hashes.append(image_hash(np.asarray(image.convert("RGB")))[0])
    apart = [(a ^ b).bit_count() for k, a in enumerate(hashes) for b in hashes[:k]]
    assert min(apart) > 6
