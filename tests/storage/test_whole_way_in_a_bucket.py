"""From the raw folder of a data set to scores in a bucket, by the commands themselves, with a kill in it."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import whole_way_config
from test_training_in_buckets import export, rows

from tests.builders import test_argoverse2, test_gta_sfm
from vlm3_jax import storage
from vlm3_jax.checkpoint import locate

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = f"--config={whole_way_config.__file__}"
walk = test_gta_sfm.raw
BUILT = {"argoverse2": 6, "gta_sfm": 3}


class Way:
    """The commands of one way: everything they write lies in `place`."""

    def __init__(self, place, raw: dict[str, pathlib.Path], cache: pathlib.Path):
        self.place, self.raw, self.run = place, raw, place / "run"
        paths = f"{ROOT}:{ROOT / 'tests' / 'storage'}"
        self._environment = os.environ | {
            "PYTHONPATH": paths,
            "RUN_DATA": str(place / "data"),
            "VLM3_CACHE": str(cache),
        }

    def command(self, *words, code: int = 0) -> str:
        """What a command prints, which ends with this code."""
        line = [sys.executable, "-m", "vlm3_jax.cli", *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, env=self._environment, cwd=self.raw["here"])
        assert done.returncode == code, done.stderr
        return done.stdout

    def build(self) -> None:
        for name, count in BUILT.items():
            split = "val" if name == "argoverse2" else "train"
            out = self.place / "data" / name
            said = self.command(
                "data", "build", name, f"--raw={self.raw[name]}", f"--split={split}", f"--out={out}", "--shard-items=4"
            )
            assert f"{out}: {count} records of" in said

    def train(self, argument: str = "", code: int = 0) -> None:
        config = CONFIG + (f":{argument}" if argument else "")
        self.command("train", config, f"--workdir={self.run}", code=code)

    def convert_and_evaluate(self) -> None:
        self.command("convert", self.run, self.place / "hf")
        self.command("eval", CONFIG, f"--model={self.place / 'hf'}", f"--workdir={self.place / 'scores'}")


def contents(folder) -> dict[str, bytes]:
    """All files of a folder by their names in it, but locks and who is alive."""
    found = (path for path in storage.path(folder).rglob("*") if not path.name.endswith("lock"))
    names = {str(path).removeprefix(f"{folder}/"): path for path in found if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items()}


@pytest.mark.slow
def test_from_raw_files_to_scores_with_a_kill(gs, walk, tmp_path):
    """Killed in step 10 of 12, the same command again: all that is left behind is that of a local, undisturbed run."""
    raw = {"argoverse2": test_argoverse2.write(tmp_path / "raw"), "gta_sfm": walk, "here": tmp_path / "here"}
    raw["here"].mkdir()
    far, near = Way(gs, raw, tmp_path / "far"), Way(tmp_path / "near", raw, tmp_path / "none")

    far.build()
    far.train("SIGKILL@10", code=-signal.SIGKILL)
    assert (far.run / ".lock").is_file()
    assert locate.steps(far.run)[-1] in (4, 8)
    far.train()
    far.convert_and_evaluate()
    near.build()
    near.train()
    near.convert_and_evaluate()

    assert contents(far.place / "data") == contents(near.place / "data")
    told = rows(near.run)
    assert [row["step"] for row in told if "loss" in row] == list(range(1, 13))
    assert rows(far.run) == told
    assert export(far.run) == export(near.run)
    converted = contents(far.place / "hf")
    assert converted == contents(near.place / "hf")
    assert converted["model.safetensors"]
    scores, expected = contents(far.place / "scores"), contents(near.place / "scores")
    answers = {name for name in expected if name.endswith(".jsonl")}
    assert answers
    assert {name: scores[name] for name in answers} == {name: expected[name] for name in answers}
    assert json.loads(scores["eval/results.json"]) == json.loads(expected["eval/results.json"])
    # On this machine's disk there is nothing but the cache.
    assert not list(raw["here"].iterdir())
