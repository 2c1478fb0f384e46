"""The output folder of benchmarks: whose answers it holds, and of which benchmarks."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from vlm3_jax import storage
from vlm3_jax.errors import UserError
from vlm3_jax.evaluate import predictions
from vlm3_jax.evaluate.benchmarks import Asked, of_key
from vlm3_jax.evaluate.manifest import Manifest
from vlm3_jax.files import Fields, read_json, write_text

RUN, BENCH = "run.json", "bench.json"


@dataclasses.dataclass(frozen=True)
class Bench:
    """A benchmark in an output folder.

    `partial`: what of its manifest was not asked about, in a few words; "" if nothing. `sha256`: of the manifest.
    """

    asked: Asked
    folder: storage.AnyPath
    partial: str
    sha256: str


def claim(out: storage.AnyPath, about: dict[str, Any]) -> None:
    """Makes the folder that of these answers. UserError if it holds others."""
    path = out / RUN
    about = json.loads(json.dumps(about))
    if path.is_file():
        held = told(out)
        if names := sorted(name for name in held.keys() | about.keys() if held.get(name) != about.get(name)):
            raise UserError(
                f"--out={out}: holds answers of {held.get('answers_by')!r} that differ in {', '.join(names)}; choose "
                "another folder"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(about, indent=1) + "\n")


def told(out: storage.AnyPath) -> dict[str, Any]:
    """What a folder tells of its answers; {} if nothing."""
    held = read_json(out / RUN) if (out / RUN).is_file() else {}
    return held if isinstance(held, dict) else {}


def answers_by(out: storage.AnyPath) -> str:
    """Who gave the answers in a folder; "" if it does not tell."""
    return Fields.read(out / RUN).text("answers_by", "") if (out / RUN).is_file() else ""


def write_bench(folder: storage.AnyPath, manifest: Manifest, partial: str = "") -> None:
    """Says which benchmark the predictions in a folder are of, and what of it was left out."""
    write_text(folder / BENCH, json.dumps(_bench(manifest, partial), indent=1) + "\n")


def retract(folder: storage.AnyPath, manifest: Manifest, partial: str = "") -> None:
    """Before the predictions are replaced: what is said of them goes, if it would be wrong of the new ones.

    So a kill before `write_bench` leaves a folder that no table shows, not one that tables tell wrong things of.
    """
    if (folder / BENCH).is_file() and read_json(folder / BENCH) != _bench(manifest, partial):
        (folder / BENCH).unlink()


def _bench(manifest: Manifest, partial: str) -> dict[str, str]:
    partial = ", ".join(part for part in (manifest.incomplete, partial) if part)
    return {"benchmark": manifest.asked.key, "partial": partial, "manifest_sha256": manifest.sha256}


def benches(out: storage.AnyPath) -> Iterator[Bench]:
    """The benchmarks in an output folder, sorted by name; none if it is another kind of folder."""
    if not out.is_dir():
        return
    for folder in sorted(out.iterdir(), key=lambda path: path.name):
        if (folder / BENCH).is_file() and (folder / predictions.FILE).is_file():
            fields = Fields.read(folder / BENCH)
            asked = of_key(fields.text("benchmark"))
            if asked is None:
                raise UserError(f"{fields.name}: there is no benchmark {fields.text('benchmark')!r}")
            yield Bench(asked, folder, fields.text("partial"), fields.text("manifest_sha256"))
