"""`vlm3 calibrate` on a model that has learnt nothing: it says so; what it learns is tested in evaluate/."""

import pytest

from tests.support import small_run, write_records
from vlm3_jax import cli


@pytest.fixture(scope="module")
def config(lively, tmp_path_factory):
    root = tmp_path_factory.mktemp("calibrate")
    write_records(root / "records", 4)
    path = root / "run.py"
    path.write_text(
        "from tests.commands.test_calibrate_command import run_of\n\n"
        f"def get_config(argument=''):\n    return run_of({str(lively)!r}, {str(root)!r})\n"
    )
    return path


def run_of(model, root):
    config = small_run(model, f"{root}/records", f"{root}/workdir")
    config.eval.max_new_tokens = 4
    return config


@pytest.mark.slow
def test_a_model_whose_answers_hold_no_numbers(config, capsys):
    assert cli.main(["calibrate", f"--config={config}", "--records=2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("vlm3 calibrate: held-out component depth, 2 records: ")
    assert "answers with a number in the two halves; 40 are needed in each" in line


def test_mistakes(config, capsys):
    for words, why in [
        (["--records=1"], "--records=1: 2 at least, one for each half"),
        (["--component=walls"], "--component=walls: no held-out depth component of this config; there are: depth"),
    ]:
        assert cli.main(["calibrate", f"--config={config}", *words]) == 2
        assert capsys.readouterr().err == f"vlm3 calibrate: {why}\n"
