"""What `vlm3 eval` writes, in a bucket: the files of a local folder; an evaluation that was stopped goes on."""

import json
import pathlib
import sys

import pytest

from vlm3_jax import cli
from vlm3_jax.evaluate import freeze, manifest, outputs, tables
from vlm3_jax.evaluate.benchmarks import BENCHMARKS, Asked
from vlm3_jax.evaluate.foreign import score as foreign
from vlm3_jax.evaluate.report.page import write_report
from vlm3_jax.evaluate.results import load_results
from vlm3_jax.evaluate.run import evaluate
from vlm3_jax.storage.folders import put_folder

sys.path.append(str(pathlib.Path(__file__).parents[1] / "evaluate"))
from bench_toys import Knows, built, depth_record, questions
from evaluate_toys import Truthful, make_questions


class Stops(Truthful):
    """Answers so many calls, then is interrupted."""

    def __init__(self, asked, calls: int):
        super().__init__(asked)
        self.left = calls

    def answer(self, images, questions):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().answer(images, questions)


def files(folder) -> dict[str, bytes]:
    """All files below a folder but the answers of single processes, which are in the order in which they came."""
    found = (path for path in folder.rglob("*") if isinstance(folder, pathlib.Path) is False or path.is_file())
    named = {str(path).removeprefix(str(folder)): path.read_bytes() for path in found}
    return {name: data for name, data in named.items() if "/parts/" not in name}


def test_files_scores_and_report(run_place, tmp_path, capsys):
    place = run_place
    asked = make_questions("depth")
    whole = Truthful(asked)
    evaluate(whole, asked, tmp_path / "out", progress=False, records_per_call=2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Stops(asked, 2), asked, place / "out", progress=False, records_per_call=2)
    kept = [path for path in (place / "out").rglob("*.jsonl") if path.stat().st_size]
    assert [path.parent.parent.name for path in kept] == ["parts"]
    again = Truthful(asked)
    evaluate(again, asked, place / "out", progress=False, records_per_call=2)
    assert len(again.asked) < len(whole.asked)
    assert files(place / "out") == files(tmp_path / "out")
    assert load_results(place / "out").entries[0].scores["model"].value == 1.0
    write_report(place / "report.html", {"one": place / "out"})
    assert b"toy-depth" in (place / "report.html").read_bytes()
    assert cli.main(["report", str(place / "out"), f"--out={place}/two.html"]) == 0
    assert f"{place}/two.html" in capsys.readouterr().out


def test_benchmarks_with_data_answers_and_tables_in_a_bucket(run_place, tmp_path):
    place, asked = run_place, Asked(BENCHMARKS["ibims1"])
    records = [depth_record(n) for n in range(2)]
    put_folder(built(tmp_path / "built", records), place / "built", "build.json")
    made = freeze.freeze(asked, place / "built", [record.id for record in records])
    assert made.head["labels"] == 200
    assert not freeze.freeze(asked, place / "built", []).new
    found = manifest.read(asked, place / "built")
    told = questions(found, place / "built", limit=1, labels=7)
    outputs.claim(place / "out", {"answers_by": "one"})
    evaluate(Knows(told), told, place / "out" / "ibims1", variants=("model",), progress=False)
    outputs.write_bench(place / "out" / "ibims1", found, told.partial)
    (block,) = tables.write(place / "out").blocks
    assert block.own[0].values[6] == 1
    assert block.own[0].name == "one"
    assert (place / "out" / "benchmarks.md").is_file()
    true = {row.id: row.record.depth[0].depth_m.tolist() for row in (found[0], found[1])}
    rows = "".join(json.dumps({"id": id, "prediction": depth}) + "\n" for id, depth in true.items())
    (place / "answers.jsonl").write_text(rows)
    assert foreign.score(found, str(place / "answers.jsonl"), foreign.Options(), place / "theirs")["delta1"] == 1
    assert [bench.asked for bench in outputs.benches(place / "theirs")] == [Asked(BENCHMARKS["ibims1"])]
