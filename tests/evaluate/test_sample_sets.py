"""The commands of docs/evaluation.md, run as they stand on real samples, and the maps that come with these."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from vlm3_jax import cli
from vlm3_jax.evaluate.benchmarks import BENCHMARKS

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
RUN = ("DDAD", "NuScenes", "iBims-1", "NYUv2")


def commands() -> list[list[str]]:
    section = PAGE.split("## Tried on real samples")[1]
    return [shlex.split(line) for line in re.findall(r"^    (.*)$", section, re.MULTILINE)]


def test_the_page_has_every_benchmark_with_what_builds_it():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| `(\w+) --split=(\w+)` \|", PAGE, re.MULTILINE)
    assert [row[0] for row in rows] == list(BENCHMARKS)
    for name, column, builder, split in rows:
        one = BENCHMARKS[name]
        assert (one.builder, one.split) == (builder, split)
        assert (column == "none published") == (not one.published)


@pytest.mark.slow
def test_samples_from_raw_files_to_tables(samples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLM3_DATA", str(tmp_path / "data"))
    for program, *words in commands():
        words = [str(samples) if word == "SAMPLES" else word for word in words]
        if program == "python":
            subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]], check=True, cwd=tmp_path)
        else:
            assert cli.main(words) == 0, (words, capsys.readouterr().err)
    depth, matches, pose = json.loads((tmp_path / "out/benchmarks.json").read_text())["blocks"]
    assert (depth["task"], matches["task"], pose["task"]) == ("depth", "correspondence", "pose")
    assert set(depth["run"]) == set(RUN)
    assert len(depth["lines"]) == 13
    assert depth["columns"][-1] == "Middlebury 2014 *"
    assert {line["name"] for line in pose["lines"]} >= {"VLM3-4B", "DA3-Giant", "VGGT"}
    assert depth["partial"]
    report = (tmp_path / "report.html").read_text()
    assert "Beside published results" in report
    for text in ("Error against depth", "Examples", "data:image/jpeg"):
        assert text in report
    _score_maps(tmp_path, capsys)


def _score_maps(folder, capsys) -> None:
    """True maps are right everywhere, those times 1.3 nowhere, and those of the other kind less often."""
    capsys.readouterr()

    def scored(maps, kind, benchmark) -> dict:
        assert cli.main(["score", "depth", str(maps), benchmark, f"--kind={kind}"]) == 0
        return json.loads(capsys.readouterr().out)

    for benchmark in ("nyuv2", "middlebury_depth", "nuscenes"):
        truth = folder / "raw/truth" / benchmark.removesuffix("_depth")
        found = scored(truth, "z", benchmark)
        assert (found["delta1"], found["parse_failures"]) == (1, 0)
        assert scored(truth, "distance", benchmark)["abs_rel"] > 10 * found["abs_rel"]
        scaled = folder / "scaled" / benchmark
        for path in truth.rglob("*.npy"):
            place = scaled / path.relative_to(truth)
            place.parent.mkdir(parents=True, exist_ok=True)
            np.save(place, 1.3 * np.load(path))
        assert scored(scaled, "z", benchmark)["delta1"] == 0
    distances = folder / "raw/truth/nuscenes-distance"
    assert scored(distances, "distance", "nuscenes")["delta1"] == 1
    assert scored(distances, "z", "nuscenes")["delta1"] < 0.97
