"""The command line: help everywhere, and for every mistake one line, exit code 2 and nothing half-written."""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import ExifTags, Image

from tests.support import rows_of_metrics, small_run, write_depthlm, write_records
from vlm3_jax import cli
from vlm3_jax import config as configs
from vlm3_jax.checkpoint import tiny
from vlm3_jax.commands import arguments
from vlm3_jax.errors import Again
from vlm3_jax.tasks import protocol


def commands(parser=None, path=()):
    """Every command and sub-command, as words."""
    yield path
    for action in (parser or cli.make_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from commands(sub, (*path, name))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_help(words, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: vlm3 " + " ".join(words))
    assert len(text.splitlines()) > 3


def test_commands_are_all_there():
    assert {("train",), ("eval",), ("report",), ("score",), ("ask",), ("demo",), ("convert",)} <= set(commands())
    assert {("data", name) for name in ("build", "mix", "show", "check")} <= set(commands())


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    """A folder with records, a DepthLM jsonl, and configs of runs on either."""
    root = tmp_path_factory.mktemp("cli")
    write_records(root / "records")
    write_depthlm(root / "depthlm")
    for name in ("records", "depthlm"):
        (root / f"{name}.py").write_text(
            "from tests.test_cli import config_of\n\n"
            f"def get_config(argument=''):\n    return config_of({str(root)!r}, {name!r}, {str(tiny_model)!r})\n"
        )
    return root


def config_of(root, name, model):
    """The small run; with "depthlm" its components read the jsonl and its images."""
    config = small_run(model, pathlib.Path(root) / name)
    if name == "depthlm":
        # The same shapes and number of components as the other runs in these tests: their program is compiled once.
        for entry in (*config.data.components.values(), *config.eval.components.values()):
            entry.kind, entry.path, entry.task = "depthlm", f"{root}/depthlm/train.jsonl", "depth"
            entry.depth_kind = "z"
    return config


@pytest.fixture
def depthlm(made, tmp_path):
    """A copy of the jsonl and its images that may be damaged, and the options that point to it."""
    folder = tmp_path / "depthlm"
    shutil.copytree(made / "depthlm", folder)
    config = [f"--config={made / 'depthlm.py'}", f"--workdir={tmp_path / 'workdir'}"]
    for group, name in (("data", "depth"), ("data", "match"), ("eval", "depth")):
        config.append(f"--config.{group}.components.{name}.path={folder / 'train.jsonl'}")
    return folder, config


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail as a user's mistake; its one line. Only `train` may have said more before."""

    def run(*words) -> str:
        words = [str(word) for word in words]
        assert cli.main(words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        lines = err.splitlines()
        assert len(lines) == 1 or words[0] == "train"
        assert lines[-1].startswith(f"vlm3 {words[0]}: ")
        return lines[-1].removeprefix(f"vlm3 {words[0]}: ")

    return run


def test_mistakes_in_the_config(made, fails, tmp_path):
    records = f"--config={made / 'records.py'}"
    workdir = f"--workdir={tmp_path / 'w'}"
    line = fails("train", records, workdir, "--config.optimizer.learning_rat=1")
    assert line.endswith("the config has no field 'learning_rat'; did you mean 'learning_rate'?")
    line = fails("train", records, workdir, "--config.data.rows=many")
    assert line.startswith("--config.data.rows=many: not a int")
    line = fails("train", "--config=nothere", workdir)
    assert "no file" in line
    assert "shipped configs are correspondence, demo" in line
    assert fails("train", records).startswith("no workdir is given: set --workdir")
    line = fails("train", records, workdir, "--config.data.components.depth.task=dept")
    assert "dept" in line
    line = fails("train", records, workdir, "--config.data.components.depth.protocol=long")
    assert line == "component 'depth': protocol is 'long'; choose one of ('release', 'paper', 'short')"
    line = fails("train", records, workdir, f"--config.data.components.depth.path={tmp_path / 'none'}")
    assert line == f"depth: no ArrayRecord shards (*.array_record*) at {tmp_path / 'none'}"
    line = fails("train", records, workdir, "--config.optimizer.schedule=step")
    assert line == "optimizer.schedule is 'step', but must be one of 'cosine', 'linear_tail', 'constant'"
    line = fails("train", records, workdir, "--config.data.row_tokens=64")
    assert "is larger than a row (" in line
    assert not (tmp_path / "w" / "export").exists()


def test_numbers_that_cannot_be(made, fails, tmp_path):
    """Whichever command reads them: each is named before anything is computed."""
    config = (f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    for command in (("train",), ("data", "mix"), ("data", "show"), ("data", "check")):
        line = fails(*command, *config, "--config.data.max_bad_fraction=nan")
        assert line == "data.max_bad_fraction is nan, but must be from 0 to 1"
        assert fails(*command, *config, "--config.seed=-1").startswith("seed is -1, but must be at least 0")
        assert (
            fails(*command, *config, "--config.data.pair_block=-1") == "data.pair_block is -1, but must be at least 0"
        )
    assert fails("data", "mix", *config, "--config.data.row_tokens=0") == "data.row_tokens is 0, but must be at least 1"
    line = fails("data", "show", *config, "--config.data.components.depth.weight=inf")
    assert line == "component 'depth': weight = inf is out of range"
    assert fails("data", "mix", *config, "--samples=0") == "--samples=0: draw at least 1"
    assert fails("data", "show", *config, "--index=-1") == "--index=-1: draws of a mixture are counted from 0"
    line = fails("data", "show", *config, f"--picture={tmp_path}/missing/x.png")
    assert line == f"--picture={tmp_path}/missing/x.png: no folder {tmp_path}/missing"
    (tmp_path / "folder.png").mkdir()
    assert fails("data", "show", *config, f"--picture={tmp_path}/folder.png").endswith("folder.png: it is a folder")
    for name in ("x.foo", "x", "x.png.gz"):
        line = fails("data", "show", *config, f"--picture={name}")
        assert line == f"--picture={name}: give a file that ends in .png or .jpg or .jpeg or .webp"


def test_a_command_without_config_refuses_its_fields(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["ask", "--model=x", "--question=y", "--config.seed=1"])
    assert done.value.code == 2
    assert "this command takes no config" in capsys.readouterr().err


def test_a_model_that_is_none(made, fails, tmp_path, monkeypatch):
    train = ("train", f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    for name in ("nothere", "./nothere", f"{tmp_path}/nothere", tmp_path, "a/b/c"):
        line = fails(*train, f"--model={name}")
        assert line == f"{name}: no model directory (config.json, safetensors, tokenizer) and not a hub name"
    assert fails(*train, "--model=nobody/nothing").startswith("nobody/nothing: not a local directory, and the hub")
    assert fails(*train, "--model=tiny:huge") == "tiny checkpoint: unknown size 'huge'; choose one of demo, test, moe"
    assert fails(*train, "--config.model=").startswith("no model is given: set --config.model (or --model)")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    line = fails(*train, f"--model={tmp_path}")
    assert line.startswith(f"{tmp_path / 'config.json'}: ")
    (tmp_path / "config.json").unlink()

    def many_lines(*args, **kwargs):
        raise LocalEntryNotFoundError("404 Client Error.\n\nRepository Not Found")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", many_lines)
    assert fails(*train, "--model=nobody/nothing").endswith("(404 Client Error. Repository Not Found)")
    # Nothing but the folder of a run, which holds no part of one.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ('{"image": "0.png", "intrinsics": [40, 40, 16', "not JSON ("),
        ('{"image": "0.png", "pixel_coords": [[1, 2]], "depth": [3]}', "field 'intrinsics' is missing"),
        ('["0.png"]', "expected a JSON object, got list"),
        (
            '{"image": "0.png", "intrinsics": [40, 40, 16, 12, 32, 24], "pixel_coords": [[1, 2]], "depth": [1, 2]}',
            "pixel_coords has 1 points and depth 2 values",
        ),
        (
            '{"image": "0.png", "intrinsics": [-4, 0, 16, 12, 32, 24], "pixel_coords": [[1, 2]], "depth": [1]}',
            "camera: focal lengths must be positive and finite",
        ),
    ],
)
def test_a_malformed_line_is_named(depthlm, fails, damage, reason):
    folder, config = depthlm
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[4] = damage
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    line = fails("train", *config)
    assert line.startswith(f"{folder / 'train.jsonl'}:5: {reason}")
    assert line.endswith("(1 of 20 lines are unusable, above max_bad_fraction = 0.01)")
    assert f"{folder / 'train.jsonl'}:5" in fails("data", "mix", *config)


def test_an_image_outside_its_folder_is_refused(depthlm, fails, tmp_path):
    folder, config = depthlm
    shutil.copy(folder / "0.png", tmp_path / "secret.png")
    text = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(text.replace('"2.png"', '"../secret.png"'))
    # Whatever share of bad records is allowed.
    line = fails("train", *config, "--config.data.max_bad_fraction=1.0")
    assert line == f"{folder / 'train.jsonl'}:3: image '../secret.png' leaves the image folder {folder.resolve()}"
    (folder / "train.jsonl").write_text(text)
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to(tmp_path / "secret.png")
    line = fails("data", "check", *config, "--config.data.max_bad_fraction=1.0")
    assert line == f"{folder / 'train.jsonl'}:3: image '2.png' leaves the image folder {folder.resolve()}"


def damage_images(folder):
    (folder / "3.png").unlink()
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:150])


def test_data_check_counts_broken_images(depthlm, capsys):
    folder, config = depthlm
    # Held-out data are the training data here, which a check would tell.
    config = (*config, "--config.eval.components.depth.weight=0")
    assert cli.main(["data", "check", *config]) == 0
    assert "depth: 20 records, 0 passed over, 0 bad" in capsys.readouterr().out
    damage_images(folder)
    assert cli.main(["data", "check", *config]) == 1
    out = capsys.readouterr().out
    assert "depth: 20 records, 0 passed over, 2 bad, 0 labels removed" in out
    assert "depth/3: 3.png: no such image file" in out
    assert "depth/7: 7.png: cannot decode the image" in out
    assert "FAULT: 4 of 40 samples were unusable, above data.max_bad_fraction = 0.01" in out


def test_broken_images_below_the_limit_are_masked_and_counted(depthlm, tmp_path, fails, capsys):
    """And then the workdir holds a run of this model, which another one may not go on with."""
    folder, config = depthlm
    damage_images(folder)
    short = (*config, "--config.data.max_bad_fraction=0.5", "--config.train.max_steps=8", "--config.train.eval_every=0")
    assert cli.main(["train", *short]) == 0
    workdir = tmp_path / "workdir"
    rows = [json.loads(line) for line in (workdir / "quarantine.jsonl").read_text().splitlines()]
    reasons = {row["file"]: row["reason"] for row in rows}
    assert set(reasons) == {"3.png", "7.png"}
    assert reasons["3.png"] == "3.png: no such image file"
    assert reasons["7.png"].startswith("7.png: cannot decode the image")
    assert len({row["id"] for row in rows}) == len(rows)
    losses = [row["loss"] for row in rows_of_metrics(workdir) if "loss" in row]
    assert len(losses) == 8
    assert np.isfinite(losses).all()
    assert (workdir / "export" / "config.json").is_file()
    # A finished workdir is a model for others.
    mix = ("data", "mix", *config[:1], *config[2:], f"--workdir={tmp_path / 'other'}", f"--model={workdir}")
    assert cli.main([*mix, "--samples=10"]) == 0
    capsys.readouterr()
    other = tiny.make(tmp_path / "demo", "demo")
    line = fails("train", *short, f"--model={other}")
    assert line.startswith(f"{workdir / 'checkpoints'}: the saved run has parameters = 251048, the configuration ")
    left = [path.name for path in tmp_path.rglob("*") if path.name.endswith((".writing", ".part", ".old"))]
    assert left == []


@pytest.mark.slow
def test_broken_images_above_the_limit_stop_the_run(depthlm, tmp_path, fails):
    folder, config = depthlm
    damage_images(folder)
    line = fails("train", *config, "--config.train.max_steps=0", "--config.eval.loss_batches=0")
    assert "samples were unusable, above data.max_bad_fraction = 0.01 (the last, " in line
    assert line.endswith(f"; all are in {tmp_path / 'workdir' / 'quarantine.jsonl'}")
    assert not (tmp_path / "workdir" / "export").exists()


def test_ask(tiny_model, tmp_path, fails, capsys, rng):
    Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    ask = ("ask", f"--model={tiny_model}", "--question=What is this?", "--max-new-tokens=4")
    assert cli.main([*ask, str(tmp_path / "photo.png")]) == 0
    assert capsys.readouterr().out
    line = fails(*ask, tmp_path / "missing.png")
    assert line.startswith(f"{tmp_path / 'missing.png'}: cannot be read as an image (")
    (tmp_path / "text.png").write_text("not an image")
    assert fails(*ask, tmp_path / "text.png").startswith(f"{tmp_path / 'text.png'}: cannot be read as an image (")
    (tmp_path / "cut.png").write_bytes((tmp_path / "photo.png").read_bytes()[:200])
    assert str(tmp_path / "cut.png") in fails(*ask, tmp_path / "cut.png")


def test_other_commands_explain_themselves(made, tiny_model, fails, tmp_path, capsys):
    config = (f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    line = fails("report", tmp_path / "none", f"--out={tmp_path / 'r.html'}")
    assert line.startswith(f"{tmp_path / 'none' / 'predictions.jsonl'}: no predictions here; run `vlm3 eval`")
    line = fails("eval", *config, "--config.eval.components.depth.weight=0")
    assert line.startswith("nothing to evaluate")
    line = fails("data", "build", f"--out={tmp_path / 'd'}", "--count=0")
    assert "count and workers must be at least 1" in line
    line = fails("data", "build", f"--out={made / 'records'}", "--count=2")
    assert line == f"{made / 'records'}: not empty and no dataset.json in it; choose another folder or empty this one"
    line = fails("score", "depth", tmp_path / "p.jsonl", tmp_path / "t.jsonl")
    assert line == f"{tmp_path / 't.jsonl'}: cannot read it (No such file or directory)"
    (tmp_path / "p.jsonl").write_text('{"id": "a", "prediction": "1.0"}\n{"id": \n')
    (tmp_path / "t.jsonl").write_text('{"id": "a", "target": {"kind": "depth", "depth_m": 1.0}}\n')
    line = fails("score", "depth", tmp_path / "p.jsonl", tmp_path / "t.jsonl")
    assert line.startswith(str(tmp_path / "p.jsonl"))
    assert "2" in line.removeprefix(str(tmp_path))
    assert cli.main(["data", "show", *config, "--index=3", f"--picture={tmp_path / 'seen.png'}"]) == 0
    assert "supervised; answers in [brackets]" in capsys.readouterr().out
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 32


def test_ctrl_c_is_no_traceback(monkeypatch, capsys, tmp_path):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(configs, "load", interrupt)
    assert cli.main(["train", "--config=demo", f"--workdir={tmp_path}"]) == 130
    assert capsys.readouterr().err == "vlm3 train: interrupted\n"


def test_a_reader_that_has_gone_is_no_traceback(tmp_path):
    """As in `vlm3 score ... | head`."""
    (tmp_path / "answers.jsonl").write_text(json.dumps({"id": "a", "prediction": "1.0 meters"}) + "\n")
    target = {"kind": "depth", "depth_m": 1.0}
    (tmp_path / "targets.jsonl").write_text(json.dumps({"id": "a", "target": target}) + "\n")
    command = [sys.executable, "-m", "vlm3_jax.cli", "score", "depth", "answers.jsonl", "targets.jsonl"]
    whole = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_what_may_succeed_again_has_a_code_of_its_own(monkeypatch, capsys, tmp_path):
    """Launchers start the same command again after 1, not after 2."""

    def passing(*_):
        raise Again("the storage does not answer")

    monkeypatch.setattr(arguments, "read_config", passing)
    assert cli.main(["train", f"--config={tmp_path / 'none.py'}"]) == 1
    assert capsys.readouterr().err == "vlm3 train: the storage does not answer\n"


def test_numbers_and_questions_that_cannot_be(fails, tiny_model, tmp_path):
    """Negative lengths and sizes, and bytes that are no text: one line, whatever they are of."""
    ask = ("ask", "--model", tiny_model, "--question")
    for tokens in (0, -3):
        line = fails(*ask, "what?", f"--max-new-tokens={tokens}")
        assert line == f"max_new_tokens is {tokens}, but must be a whole number of at least 1"
    assert fails(*ask, b"caf\xe9".decode("utf-8", "surrogateescape")) == (
        "a question or answer is no text in UTF-8 ('\\udce9' is in it)"
    )
    for size in ("nan", "-1", "0", "inf", "1e-12"):
        line = fails("convert", tiny_model, tmp_path / "x", f"--max-shard-gb={size}")
        assert line == f"--max-shard-gb={size}: give a size above 0, in 10^9 bytes"
    for tolerance in ("nan", "-1", "0"):
        line = fails("verify", tiny_model, f"--tolerance={tolerance}")
        assert line == f"--tolerance={tolerance}: give a number above 0"
    for camera in ("1,2,3", "a,b,c,d"):
        assert fails(*ask, "what?", "a.png", f"--camera={camera}").startswith(f"--camera={camera}: write FX,FY,CX,CY")
    assert fails(*ask, "what?", "https://a.b/c.png").startswith("https://a.b/c.png: images are not fetched")
    assert not (tmp_path / "x").exists()


def test_ask_says_how_images_are_shown(tiny_model, tmp_path, capsys):
    """On stderr: where the camera is from, and whether lengths in the answer can be trusted."""
    image, exif = Image.fromarray(np.zeros((48, 64, 3), np.uint8)), Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 26
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.png")
    model = shutil.copytree(tiny_model, tmp_path / "model")
    ask = ["ask", "--model", str(model), "--question=how far?", "--max-new-tokens=2"]

    def said(*words) -> list[str]:
        assert cli.main([*ask, *map(str, words)]) == 0
        return [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().err.splitlines()]

    as_it_is = "shown as it is: lengths in metres mean little without the model's resize rule, see --task"
    assert said(tmp_path / "a.jpg", tmp_path / "b.png") == [
        f"a.jpg: 64 x 48, focal length 48 px (EXIF); {as_it_is}",
        f"b.png: 64 x 48, focal length 55 px (assumed 60 degrees); {as_it_is}",
    ]
    protocol.write(model, {"depth": protocol.given("depth", "short", resize="focal:40")})
    expected = ["b.png: 64 x 48, focal length 60 px (given); resized by focal:40"]
    assert said(tmp_path / "b.png", "--camera=60,60,32,24") == expected
    assert said(tmp_path / "b.png", "--camera=60,60,32,24", "--task=depth") == expected


def test_check_looks_at_held_out_data_too(made, fails, capsys, tmp_path):
    config = (f"--config={made / 'records.py'}", f"--workdir={tmp_path / 'w'}")
    # Held-out data are a part of the training data here.
    assert cli.main(["data", "check", *config, "--records=30", f"--picture={tmp_path / 'a.png'}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if " records, " in line] == ["depth", "match", "held-out depth"]
    assert "image files are (held-out depth/0 (" in lines[-2]
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 200
    assert cli.main(["data", "check", *config, "--json", "--config.eval.components.depth.weight=0"]) == 1
    found = json.loads(capsys.readouterr().out)
    same = "poses: both views of every pair have the same pose"
    assert found["faults"] == [f"depth: {same}", f"match: {same}"]
    assert found["components"]["depth"]["looked_at"] == 24
    assert "look at 1 at least" in fails("data", "check", *config, "--records=0")
    line = fails("data", "check", *config, f"--config.eval.components.depth.path={tmp_path / 'none'}")
    assert line == f"held-out depth: no ArrayRecord shards (*.array_record*) at {tmp_path / 'none'}"
