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
    """A benchmark in an output folder: `asked` of `records` records out of the `of` in its manifest.

    `points_left`: labels that could not be asked about. `sha256`: of the manifest.
    """

    asked: Asked
    folder: storage.AnyPath
    records: int
    of: int
    points_left: int
    sha256: str

    @property
    def partial(self) -> str:
        """What was left out, in a few words; "" if nothing was."""
        parts = [f"{self.records} of {self.of} records"] if self.records < self.of else []
        parts += [f"{self.points_left} points too near to the border"] if self.points_left else []
        return ", ".join(parts)


def claim(out: storage.AnyPath, about: dict[str, Any]) -> None:
    """Makes the folder that of these answers. UserError if it holds others."""
    path = out / RUN
    about = json.loads(json.dumps(about))
    if path.is_file():
        held = read_json(path)
        held = held if isinstance(held, dict) else {}
        if names := sorted(name for name in held.keys() | about.keys() if held.get(name) != about.get(name)):
            raise UserError(
                f"--out={out}: holds answers of {held.get('answers_by')!r} that differ in {', '.join(names)}; choose "
                "another folder"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(about, indent=1) + "\n")


def answers_by(out: storage.AnyPath) -> str:
    """Who gave the answers in a folder; "" if it does not tell."""
    return Fields.read(out / RUN).text("answers_by", "") if (out / RUN).is_file() else ""


def write_bench(folder: storage.AnyPath, manifest: Manifest, records: int, points_left: int = 0) -> None:
    """Says which benchmark the predictions in a folder are of."""
    about = {
        "benchmark": manifest.asked.key,
        "records": records,
        "of": len(manifest),
        "points_left": points_left,
        "manifest_sha256": manifest.sha256,
    }
    write_text(folder / BENCH, json.dumps(about, indent=1) + "\n")


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
            counts = (fields.integer(name, 0) for name in ("records", "of", "points_left"))
            yield Bench(asked, folder, *counts, fields.text("manifest_sha256"))
