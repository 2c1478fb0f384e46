"""Folders and videos: photo after photo, files as they come, the same command goes on after a kill."""

import collections
import concurrent.futures
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from vlm3_jax import storage
from vlm3_jax.answers import saving
from vlm3_jax.data.progress import Progress
from vlm3_jax.errors import Again, BadRecord, NotFinite, UserError
from vlm3_jax.files import read_json, write_text, writing
from vlm3_jax.processor import intrinsics, video_file
from vlm3_jax.processor.photo import HEIC, Photo, located, open_photo
from vlm3_jax.storage import AnyPath

IMAGES = (".jpg", ".jpeg", ".png", ".webp", *HEIC)
# Pictures and films that people have beside them, and nothing here reads.
OTHERS = (
    *(".avif", ".bmp", ".dng", ".gif", ".jp2", ".jxl", ".tif", ".tiff"),
    *(".arw", ".cr2", ".cr3", ".nef", ".orf", ".raf", ".rw2"),
    *(".3gp", ".mpg", ".mts", ".wmv"),
)
# What a folder of answers was made with; another command may not write into it.
RUN = "vlm3-run.json"


@dataclasses.dataclass(frozen=True)
class Source:
    """One photo, or one video, from which several come. `stem`: how its files are called, below the output folder."""

    path: AnyPath
    stem: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its name."""
        return self.path.suffix.lower() in video_file.SUFFIXES


def is_image(text: str) -> bool:
    """Whether a text names an image by its suffix, and is no sentence that speaks of one."""
    return text.lower().endswith(IMAGES) and (" " not in text or os.path.isfile(text))


def find(paths: Iterable[str], out: AnyPath | None) -> list[Source]:
    """The images and videos that are named, or lie in folders that are.

    Of a folder hidden files, what lies in `out` and pictures that tell answers are left out, and so are images of other
    kinds, which is said. UserError for a folder without any. A file that is named is taken whatever its name is.
    """
    found: list[tuple[AnyPath, str]] = []
    for text in paths:
        path = located(text)
        if not path.is_dir():
            found.append((path, path.name))
            continue
        found += [(p, str(p.relative_to(path))) for p in _inside(path, out)]
    # Two files that differ in their suffix only keep it.
    stems = [name[: len(name) - len(path.suffix)] for path, name in found]
    times = collections.Counter(stems)
    stems = [name if times[stem] > 1 else stem for stem, (_, name) in zip(stems, found)]
    times = collections.Counter(stems)
    if twice := next((stem for stem in stems if times[stem] > 1), None):
        first, second, *_ = (path for (path, _), stem in zip(found, stems) if stem == twice)
        raise UserError(
            f"{twice}: two of the images have this name, {first} and {second}; give the folder above them, or ask "
            "about one at a time"
        )
    return [Source(path, stem) for (path, _), stem in zip(found, stems)]


def _inside(folder: AnyPath, out: AnyPath | None) -> list[AnyPath]:
    """The images and videos of a folder, sorted."""
    files = [p for p in folder.rglob("*") if not _hidden(p, folder) and not _below(p, folder, out)]
    files = [p for p in files if not p.name.endswith(saving.PICTURES)]
    inside = sorted(p for p in files if p.suffix.lower() in (*IMAGES, *video_file.SUFFIXES) and _is_file(p))
    others = collections.Counter(p.suffix.lower() for p in files if p.suffix.lower() in OTHERS)
    told = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items()))
    if not inside:
        kinds = f"{', '.join(IMAGES)}{f'; it holds {told}' if told else ''}"
        raise UserError(f"{folder}: no images ({kinds}) and no videos in this folder")
    if told:
        print(f"{folder}: left out {told}: not read here; convert them to JPEG or PNG", file=sys.stderr)
    return inside


@dataclasses.dataclass
class Tally:
    """What a walk has come to: photos and questions answered now, photos done before, what could not be read."""

    photos: int = 0
    questions: int = 0
    unread: int = 0
    before: int = 0
    seconds: float = 0.0
    bad: list[str] = dataclasses.field(default_factory=list)

    def line(self) -> str:
        """The throughput, in one line."""
        seconds = max(self.seconds, 1e-9)
        text = (
            f"{self.photos:,} images in {self.seconds:.1f} s: {self.photos / seconds:.2f} images/s, "
            f"{self.questions / seconds:.1f} questions/s; {self.questions:,} questions, {self.unread:,} without a "
            "readable answer"
        )
        return text + (f"; {self.before:,} images were done before" if self.before else "")


def walk(
    sources: list[Source],
    out: AnyPath,
    last: str,
    settings: dict,
    camera,
    per_second: float,
    answer: Callable[[Photo], tuple],
    save: Callable[[str, object, Photo], None],
) -> Tally:
    """Answers about every photo of the sources: `answer(photo)` -> (answer, questions, unread), `save(stem, ...)`.

    The next photo is decoded, and the last one's files are written, while the model answers. `last`: what follows the
    stem in the name of the file that is written last; a photo that has it, no older than its image and the camera file
    beside that, is done. UserError if `out` was made with other `settings`.
    """
    _claim(out, settings, last)
    tally, start = Tally(), time.perf_counter()
    total = sum(video_file.expected(s.path, per_second) if s.is_video else 1 for s in sources)
    with concurrent.futures.ThreadPoolExecutor(1) as reader, concurrent.futures.ThreadPoolExecutor(1) as writer:
        waiting = _photos(sources, out, last, camera, per_second, tally)
        upcoming, written = reader.submit(next, waiting, None), None
        with Progress("photos", total) as progress:
            while (item := upcoming.result()) is not None:
                upcoming = reader.submit(next, waiting, None)
                stem, photo = item
                answered = photo and _answered(answer, photo, len(sources) > 1, tally)
                if answered:
                    found, questions, unread = answered
                    if written is not None:
                        written.result()
                    written = writer.submit(save, stem, found, photo)
                    tally.photos, tally.questions = tally.photos + 1, tally.questions + questions
                    tally.unread += unread
                progress.advance()
            if written is not None:
                written.result()
    tally.seconds = time.perf_counter() - start
    return tally


def _answered(answer, photo: Photo, several: bool, tally: Tally) -> tuple | None:
    """The answer about a photo; None, which the tally counts, if it cannot be asked about as the others are."""
    try:
        return answer(photo)
    except (Again, NotFinite):
        raise
    except UserError as error:
        if not several:
            raise
        _left_out(tally, photo.name, error)
        return None


def check(tally: Tally) -> None:
    """UserError if some images could not be read."""
    if tally.bad:
        count = tally.photos + tally.before + len(tally.bad)
        raise UserError(f"{len(tally.bad)} of {count} images could not be used, the others are done; {tally.bad[0]}")


def _photos(sources, out, last, camera, per_second, tally) -> Iterator[tuple[str, Photo | None]]:
    """(stem, photo) of each; None in place of one that is done or cannot be read, which the tally counts."""
    for source in sources:
        try:
            if not source.is_video:
                if _done(out / f"{source.stem}{last}", source.path):
                    tally.before += 1
                    yield source.stem, None
                else:
                    yield source.stem, open_photo(str(source.path), camera)
                continue
            for number, _, pixels in video_file.frames(source.path, per_second):
                stem = f"{source.stem}/frame-{number:06d}"
                if _done(out / f"{stem}{last}", source.path):
                    tally.before += 1
                    yield stem, None
                else:
                    photo = open_photo(pixels, _camera_of(source.path, camera))
                    yield stem, dataclasses.replace(photo, name=f"{source.path}, frame {number}")
        except BadRecord as error:
            _left_out(tally, str(source.path), error)
            yield source.stem, None
        except UserError as error:
            # One damaged file of many does not stop the rest; alone it is the error.
            if len(sources) == 1:
                raise
            _left_out(tally, str(source.path), error)
            yield source.stem, None


def _left_out(tally: Tally, name: str, error: UserError) -> None:
    """Counts an image and tells why; `name` is what it is called, if the error does not say it."""
    why = str(error) if name in str(error) else f"{name}: {error}"
    tally.bad.append(why)
    print(f"left out: {' '.join(why.split())}", file=sys.stderr)


def _camera_of(path: AnyPath, camera):
    """The camera of a video: what was given, else that of the file beside it (CLIP.camera.json)."""
    beside = intrinsics.sidecar(path)
    if camera is not None or not beside.is_file():
        return camera
    return lambda width, height: intrinsics.read_sidecar(beside, width, height)


def _hidden(path: AnyPath, folder: AnyPath) -> bool:
    return any(part.startswith(".") for part in str(path.relative_to(folder)).split("/"))


def _is_file(path: AnyPath) -> bool:
    """Of what a folder lists. A link that leads nowhere is one too, and then told as an image that cannot be read."""
    # In buckets there is nothing else, and each look is a request.
    return storage.is_remote(path) or path.is_file() or (path.is_symlink() and not path.exists())


def _below(path: AnyPath, folder: AnyPath, out: AnyPath | None) -> bool:
    """Whether a path of a folder lies in `out`, which is a part of it."""
    if out is None or storage.is_remote(path) != storage.is_remote(out):
        return False
    whole = out.resolve()
    return whole != folder.resolve() and whole.is_relative_to(folder.resolve()) and path.resolve().is_relative_to(whole)


def _done(path: AnyPath, image: AnyPath) -> bool:
    """Whether an answer is there, and no older than the image and the camera file beside it."""
    try:
        if not path.is_file():
            return False
        written, beside = path.stat().st_mtime_ns, intrinsics.sidecar(image)
        return written >= image.stat().st_mtime_ns and not (beside.is_file() and beside.stat().st_mtime_ns > written)
    # An image that is gone is told when it is opened.
    except FileNotFoundError:
        return False


def _claim(out: AnyPath, settings: dict, last: str) -> None:
    """Writes the settings into the folder of answers; UserError if it holds answers of others."""
    if compare(out, settings):
        return
    # Answers about single photos tell not how they were made, and would be taken for this command's.
    if held := out.is_dir() and next(out.rglob(f"*{last}"), None):
        raise UserError(f"{out}: holds answers of another command ({held.name}); choose another --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / RUN, json.dumps(settings, indent=1) + "\n")


def compare(out: AnyPath, settings: dict) -> bool:
    """Whether the folder of answers is one that a command goes on with; UserError if that one has other settings."""
    path = out / RUN
    if not path.is_file():
        return False
    held = read_json(path)
    held = held if isinstance(held, dict) else {}
    wanted = json.loads(json.dumps(settings))
    different = [
        f"{key}={_shown(held.get(key))} (now {_shown(wanted.get(key))})"
        for key in sorted(held.keys() | wanted)
        if held.get(key) != wanted.get(key)
    ]
    if different:
        raise UserError(f"{out}: holds answers of another command, {'; '.join(different)}; choose another --out")
    return True


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
