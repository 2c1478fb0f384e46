"""Leaks: what stands in training and in held-out data alike, by scene, by file, and by what an image shows."""

import collections
import hashlib

import numpy as np

from vlm3_jax.data.checks.base import Facts
from vlm3_jax.data.checks.image_hash import Index, alike, image_hash
from vlm3_jax.records import ImageRef, Record
from vlm3_jax.storage import patiently

# Near duplicates: so many of 63 bits may differ, and so much must the tiny copies correlate.
RADIUS, CORRELATION = 6, 0.98
# So many examples are named.
NAMED = 3


class _Side:
    """What is known of all training data, or of all held-out data."""

    def __init__(self):
        self.images = 0
        # Scene -> the components that have it.
        self.scenes: dict[str, set[str]] = collections.defaultdict(set)
        self.names: list[str] = []
        self.digests: list[bytes] = []
        self.hashes: list[int] = []
        self.tiny: list[np.ndarray] = []


class Leaks:
    """Collects scenes and images of training and held-out data, and compares them."""

    def __init__(self):
        self._sides = {False: _Side(), True: _Side()}
        self._seen: dict[bool, set[bytes]] = {False: set(), True: set()}

    def add_scene(self, component: str, held_out: bool, record: Record) -> None:
        """Takes the scene of a record."""
        if record.scene:
            self._sides[held_out].scenes[record.scene].add(component)

    def add_image(self, held_out: bool, where: str, ref: ImageRef, pixels: np.ndarray) -> None:
        """Takes an image with its decoded pixels; `where`: what to call it. Unreadable if the storage fails."""
        side = self._sides[held_out]
        side.images += 1
        digest = hashlib.sha256(_stored(ref, pixels)).digest()[:16]
        if digest in self._seen[held_out]:
            return
        self._seen[held_out].add(digest)
        shown = image_hash(pixels)
        if shown is not None:
            for values, value in zip((side.names, side.digests, side.hashes, side.tiny), (where, digest, *shown)):
                values.append(value)

    def facts(self) -> Facts:
        """What both sides share; faults for scenes of one data set, equal files and near duplicates."""
        training, held_out = self._sides[False], self._sides[True]
        if not (training.images or training.scenes) or not (held_out.images or held_out.scenes):
            return Facts()
        faults, warnings, values = [], [], {"training_images": training.images, "held_out_images": held_out.images}
        same_set, others, alone = self._scenes()
        if alone:
            warnings.append(
                f"held-out frames are of what is trained on: {', '.join(alone[:NAMED])} is its set's one scene"
            )
        if same_set:
            faults.append(f"leak: {_several(same_set, 'scene')} in training and held-out data of one set")
        if others:
            warnings.append(f"{_several(others, 'scene')} in held-out data and in training data of another set")
        files, near = self._images()
        if files:
            faults.append(f"leak: {_several(files, 'image file')} in training and held-out data alike")
        if near:
            faults.append(f"leak: {_several(near, 'held-out image')} as good as in the training data")
        values |= {"scenes": len(same_set) + len(alone), "files": len(files), "near_duplicates": len(near)}
        line = (
            f"leaks: {training.images:,} training and {held_out.images:,} held-out images compared: in both are "
            f"{values['scenes']} scenes, {len(files)} files, {len(near)} near duplicates"
        )
        return Facts((line,), values, tuple(faults), tuple(warnings))

    def _scenes(self) -> tuple[list[str], list[str], list[str]]:
        """Scenes on both sides: of components of one name, of others, where equal names may be chance, and lone ones.

        A set that is a single scene can be parted by its frames only.
        """
        training, held_out = self._sides[False].scenes, self._sides[True].scenes
        both = sorted(training.keys() & held_out.keys())
        of_both = {scene: training[scene] & held_out[scene] for scene in both}
        scenes = collections.Counter(name for side in (training, held_out) for names in side.values() for name in names)
        # One on each side.
        alone = [scene for scene in both if of_both[scene] and all(scenes[name] == 2 for name in of_both[scene])]
        same_set = [scene for scene in both if of_both[scene] and scene not in alone]
        return same_set, [scene for scene in both if not of_both[scene]], alone

    def _images(self) -> tuple[list[str], list[str]]:
        """Held-out images that are training files, and those that look like one."""
        training, held_out = self._sides[False], self._sides[True]
        files = {digest: name for digest, name in zip(training.digests, training.names)}
        index, tiny = Index(training.hashes), np.array(training.tiny, np.uint8)
        same, near = [], []
        for name, digest, hash, small in zip(held_out.names, held_out.digests, held_out.hashes, held_out.tiny):
            if digest in files:
                same.append(f"{name} is {files[digest]}")
                continue
            numbers = index.near(hash, RADIUS)
            if len(numbers):
                found = alike(small, tiny[numbers])
                if found.max() >= CORRELATION:
                    near.append(f"{name} looks like {training.names[numbers[found.argmax()]]}")
        return same, near


def _stored(ref: ImageRef, pixels: np.ndarray) -> bytes:
    """The bytes of an image's file, if there is one."""
    if ref.data is not None:
        return ref.data
    return patiently(ref.path.read_bytes, ref.name) if ref.path else pixels.tobytes()


def _several(names: list[str], what: str) -> str:
    """ "3 scenes are (a, b, ...)", of which a few are named."""
    count = f"{len(names):,} {what}{'s are' if len(names) > 1 else ' is'}"
    return f"{count} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
