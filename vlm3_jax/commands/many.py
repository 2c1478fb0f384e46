"""Folders and videos: photo after photo, files as they come, the same command goes on after a kill."""

import concurrent.futures
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from vlm3_jax import storage
from vlm3_jax.data.progress import Progress
from vlm3_jax.errors import BadRecord, UserError
from vlm3_jax.files import read_json, write_text
from vlm3_jax.processor import intrinsics, video_file
from vlm3_jax.processor.photo import Photo, open_photo
from vlm3_jax.storage import AnyPath

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
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


def find(paths: Iterable[str], out: AnyPath | None) -> list[Source]:
    """The images and videos that are named, or lie in folders that are; what lies in `out` is left out.

    UserError for a folder without any. A file that is named is taken whatever its name is.
    """
    found: list[tuple[AnyPath, str]] = []
    for text in paths:
        path = storage.path(text)
        if not path.is_dir():
            found.append((path, path.name))
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*IMAGES, *video_file.SUFFIXES))
        inside = [p for p in inside if p.is_file() and not _below(p, out)]
        if not inside:
            raise UserError(f"{path}: no images ({', '.join(IMAGES)}) and no videos in this folder")
        found += [(p, str(p.relative_to(path))) for p in inside]
    # Two files that differ in their suffix only keep it.
    stems = [name[: len(name) - len(path.suffix)] for path, name in found]
    stems = [name if stems.count(stem) > 1 else stem for stem, (_, name) in zip(stems, found)]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UserError(f"{twice}: two of the images have this name; give their folder, or ask about one at a time")
    return [Source(path, stem) for (path, _), stem in zip(found, stems)]


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
    stem in the name of the file that is written last; a photo that has it, no older than its image, is done. UserError
    if `out` was made with other `settings`, and at the end if some images could not be read.
    """
    _claim(out, settings)
    tally, start = Tally(), time.perf_counter()
    total = sum(video_file.expected(s.path, per_second) if s.is_video else 1 for s in sources)
    with concurrent.futures.ThreadPoolExecutor(1) as reader, concurrent.futures.ThreadPoolExecutor(1) as writer:
        waiting = _photos(sources, out, last, camera, per_second, tally)
        upcoming, written = reader.submit(next, waiting, None), None
        with Progress("photos", total) as progress:
            while (item := upcoming.result()) is not None:
                upcoming = reader.submit(next, waiting, None)
                stem, photo = item
                if photo is not None:
                    found, questions, unread = answer(photo)
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
            _left_out(tally, f"{source.path}: {error}" if str(source.path) not in str(error) else str(error))
            yield source.stem, None
        except UserError as error:
            # One damaged file of many does not stop the rest; alone it is the error.
            if len(sources) == 1:
                raise
            _left_out(tally, str(error))
            yield source.stem, None


def _left_out(tally: Tally, why: str) -> None:
    tally.bad.append(why)
    print(f"left out: {' '.join(why.split())}", file=sys.stderr)


def _camera_of(path: AnyPath, camera):
    """The camera of a video: what was given, else that of the file beside it (CLIP.camera.json)."""
    beside = intrinsics.sidecar(path)
    if camera is not None or not beside.is_file():
        return camera
    return lambda width, height: intrinsics.read_sidecar(beside, width, height)


def _below(path: AnyPath, out: AnyPath | None) -> bool:
    if out is None or storage.is_remote(path) != storage.is_remote(out):
        return False
    return path.absolute().is_relative_to(out.absolute())


def _done(path: AnyPath, image: AnyPath) -> bool:
    try:
        return path.is_file() and path.stat().st_mtime_ns >= image.stat().st_mtime_ns
    # An image that is gone is told when it is opened.
    except FileNotFoundError:
        return False


def _claim(out: AnyPath, settings: dict) -> None:
    """Writes the settings into the folder of answers, or compares them with those that are there."""
    path = out / RUN
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1) + "\n")
        return
    held = read_json(path)
    held = held if isinstance(held, dict) else {}
    wanted = json.loads(json.dumps(settings))
    different = [
        f"{key}={held.get(key)!r} (now {wanted.get(key)!r})"
        for key in sorted(held.keys() | wanted)
        if held.get(key) != wanted.get(key)
    ]
    if different:
        raise UserError(f"{out}: holds answers of another command, {'; '.join(different)}; choose another --out")
