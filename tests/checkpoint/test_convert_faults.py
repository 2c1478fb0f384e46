"""What can be wrong with files: each is named in one line with exit code 2, and the target stays as it was."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from vlm3_jax import cli
from vlm3_jax.checkpoint import hf
from vlm3_jax.checkpoint.safetensors_file import SafetensorsFile
from vlm3_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
NORM = "model.language_model.norm.weight"
EMBED = "model.language_model.embed_tokens.weight"
Q_PROJ = "text.layers.q_proj"


@pytest.fixture(scope="module")
def intact(tiny_model, tmp_path_factory):
    """An HF directory and the checkpoint that it becomes."""
    root = tmp_path_factory.mktemp("intact")
    shutil.copytree(tiny_model, root / "hf")
    assert cli.main(["convert", str(root / "hf"), str(root / "ours")]) == 0
    return root


@pytest.fixture
def fails(capsys):
    """The one line of a conversion that is refused."""

    def run(*arguments) -> str:
        capsys.readouterr()
        assert cli.main(["convert", *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("vlm3 convert: ")

    return run


def rewrite(path, change=lambda header: None, data=lambda data: data, length=lambda length: length, text=None):
    """Changes the header (parsed, or its text), the data or the length that stands before them."""
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    change(header)
    written = json.dumps(header) if text is None else text(json.dumps(header))
    written = written.encode() + b" " * (-len(written) % 8)
    path.write_bytes(struct.pack("<Q", length(len(written))) + written + data(whole[8 + size :]))


def entry(key, **fields):
    return lambda header: header[key].update({k: v(header[key][k]) if callable(v) else v for k, v in fields.items()})


def second(text: str) -> str:
    """The header with a key twice."""
    return text[:-1] + f', "{NORM}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}'


def retype(path, dtype):
    tensors = safetensors.numpy.load_file(path)
    tensors[NORM] = tensors[NORM].astype(dtype)
    safetensors.numpy.save_file(tensors, path)


def as_fp8(header):
    """All tensors but one as they are; that one claims to be fp8, its bytes as many."""
    header[NORM]["dtype"] = "F8_E4M3"
    header[NORM]["shape"] = [4 * header[NORM]["shape"][0]]


FAULTS = {
    "truncated": (lambda p: rewrite(p, data=lambda d: d[:-100]), r"truncated or not a safetensors file (", "its end)"),
    "something behind the end": (lambda p: rewrite(p, data=lambda d: d + b"12345678"), "8 bytes behind the last"),
    "length of the header lies, too long": (lambda p: rewrite(p, length=lambda n: 10**7), "header should have 10,0"),
    "length of the header lies, too short": (lambda p: rewrite(p, length=lambda n: n - 9), "its header is no JSON"),
    "length of the header lies, by far": (lambda p: rewrite(p, length=lambda n: 2**63), "truncated or not a"),
    "seven bytes": (lambda p: p.write_bytes(b"1234567"), "7 bytes, it has no header"),
    "header is a list": (lambda p: rewrite(p, text=lambda t: f"[{t}]"), "its header is no JSON object"),
    "header nests without end": (lambda p: rewrite(p, text=lambda t: "[" * 200_000), "its header is no JSON"),
    "offsets outside": (
        lambda p: rewrite(p, entry(NORM, data_offsets=lambda o: [10**8, 10**8 + o[1] - o[0]])),
        f"truncated or not a safetensors file ({NORM} ends ",
    ),
    "offsets overlap": (lambda p: rewrite(p, entry(NORM, data_offsets=lambda o: [n - 8 for n in o])), NORM, "overlap"),
    "offsets negative": (lambda p: rewrite(p, entry(NORM, data_offsets=[-4, 188])), f"data_offsets of {NORM} are [-4"),
    "offsets are no numbers": (lambda p: rewrite(p, entry(NORM, data_offsets=["0", 4])), f"the data_offsets of {NORM}"),
    "offsets backwards": (lambda p: rewrite(p, entry(NORM, data_offsets=[192, 0])), "expected a start and an end"),
    "shape and bytes": (lambda p: rewrite(p, entry(NORM, shape=[47])), f"{NORM} is F32 of shape (47,), which 192 "),
    "shape far too large": (lambda p: rewrite(p, entry(NORM, shape=[2**62, 2**62])), "which 192 bytes are not"),
    "a key twice": (lambda p: rewrite(p, text=second), f"the header names {NORM} twice"),
    "an unknown dtype": (lambda p: rewrite(p, entry(NORM, dtype="F7")), f"the dtype of {NORM} is 'F7'"),
    "integers": (lambda p: retype(p, np.int32), f"{NORM} is stored as I32, supported are F32, BF16, F16"),
    "doubles": (lambda p: retype(p, np.float64), f"{NORM} is stored as F64"),
    "fp8": (lambda p: rewrite(p, as_fp8), f"{NORM} is stored as F8_E4M3"),
    "shape of another model": (
        lambda p: rewrite(p, entry(EMBED, shape=lambda s: [s[1], s[0]])),
        f"{EMBED} has shape (48, 512), the config says (512, 48)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faults_of_safetensors(fault, intact, fails, tmp_path):
    change, *parts = FAULTS[fault]
    shutil.copytree(intact / "hf", tmp_path / "hf")
    change(tmp_path / "hf" / hf.SINGLE)
    line = fails(tmp_path / "hf", tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'hf' / hf.SINGLE}: ")
    assert all(part in line for part in parts), line
    assert len(line) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_header_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    with pytest.raises(UserError, match=r"a header of 200,000,000 bytes, at most 100,000,000 are read"):
        SafetensorsFile(path)


def test_our_reader_agrees_with_the_library(intact):
    file, theirs = SafetensorsFile(intact / "hf" / hf.SINGLE), safetensors.numpy.load_file(intact / "hf" / hf.SINGLE)
    assert file.entries.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(file.tensor(key), value)
        assert not file.tensor(key).flags.writeable


def drop_chunk(params):
    (params / "text.embed" / "0.0").unlink()


def edit_zarray(params, **fields):
    path = params / Q_PROJ / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


CHECKPOINT_FAULTS = {
    "chunk missing": (drop_chunk, "params: chunk text.embed/0.0 missing"),
    "chunk truncated": (
        lambda p: os.truncate(p / "text.embed" / "0.0", 100),
        "text.embed/0.0: truncated or altered (100",
    ),
    "parameter missing": (lambda p: shutil.rmtree(p / Q_PROJ), f"params: parameter {Q_PROJ} missing"),
    "wrong shape": (lambda p: edit_zarray(p, shape=[1, 48, 4, 25]), f"{Q_PROJ} has shape (1, 48, 4, 25), the config"),
    "wrong dtype": (lambda p: edit_zarray(p, dtype="<i4"), f"{Q_PROJ} is stored as <i4, supported are float32"),
    "no JSON": (lambda p: (p / Q_PROJ / ".zarray").write_text("{"), f"{Q_PROJ}/.zarray: not a zarr array"),
    "chunks of rank 1": (lambda p: edit_zarray(p, chunks=[3]), f"{Q_PROJ}/.zarray: not a zarr array"),
    "chunks of zero": (lambda p: edit_zarray(p, chunks=[1, 48, 0, 24]), f"{Q_PROJ}/.zarray: not a zarr array"),
    "another parameter": (
        lambda p: shutil.copytree(p / "text.norm", p / "text.other"),
        "tensor text.other not part of the model its config.json describes",
    ),
}


@pytest.mark.parametrize("fault", list(CHECKPOINT_FAULTS))
def test_faults_of_checkpoints(fault, intact, fails, tmp_path):
    change, part = CHECKPOINT_FAULTS[fault]
    shutil.copytree(intact / "ours", tmp_path / "ours")
    change(tmp_path / "ours" / "params")
    line = fails(tmp_path / "ours", tmp_path / "out")
    assert line.startswith(f"{tmp_path / 'ours' / 'params'}")
    assert part in line
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_target_that_is_taken(intact, fails, tmp_path):
    source, target = intact / "hf", tmp_path / "out"
    target.mkdir()
    (target / "diary.txt").write_text("mine")
    taken = f"{target}: exists and is not empty; give --overwrite to replace it, or choose another target"
    assert fails(source, target) == taken
    assert (
        fails(source, target, "--overwrite")
        == f"{target}: holds no model, so it is not overwritten; choose another target"
    )
    assert (target / "diary.txt").read_text() == "mine"
    (target / "diary.txt").unlink()
    assert cli.main(["convert", str(source), str(target)]) == 0
    before = contents(target)
    assert fails(source, target) == taken
    assert contents(target) == before
    assert cli.main(["convert", str(source), str(target), "--overwrite", "--dtype=bfloat16"]) == 0
    assert contents(target).keys() == before.keys()
    assert contents(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    before = contents(source)
    for same in (source, source / "..", intact):
        assert fails(source, same, "--overwrite").endswith(": is the source; choose another target")
    assert contents(source) == before


def test_sources_that_are_none(fails, tmp_path):
    nowhere = "no model directory (config.json, safetensors, tokenizer) and not a hub name"
    assert fails(tmp_path / "nothere", tmp_path / "out") == f"{tmp_path / 'nothere'}: {nowhere}"
    assert fails("nobody/nothing", tmp_path / "out").startswith("nobody/nothing: not a local directory, and the hub")
    (tmp_path / "run" / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    assert fails(tmp_path / "run", tmp_path / "out") == f"{tmp_path}/run/checkpoints: no complete step yet"
    (tmp_path / "run" / "checkpoints" / "5").mkdir()
    where = f"{tmp_path}/run/checkpoints"
    assert fails(tmp_path / "run", tmp_path / "out", "--step=7") == f"{where}: no complete step 7 (complete: 5)"
    assert fails(tmp_path / "run", tmp_path / "out").startswith(f"{where}/5/params: no such item")


def test_a_step_of_what_is_no_workdir(intact, fails, tmp_path):
    line = f"{intact / 'ours'}: not a training workdir, so it has no step 3"
    assert fails(intact / "ours", tmp_path / "out", "--step=3") == line


LIMITED = """
import resource, signal, sys
from vlm3_jax import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_full_disk(intact, fails, tmp_path):
    """A conversion that a limit on the size of files has stopped goes on, then meets a device that is always full."""
    command = [sys.executable, "-c", LIMITED, "convert", str(intact / "ours"), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    again = "what is written is kept: the same command goes on from there"
    aside = tmp_path / "out.converting"
    assert (done.returncode, done.stderr) == (
        2,
        f"vlm3 convert: {aside}: cannot be written (File too large); {again}\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == [aside.name]
    written = (aside / hf.SINGLE).read_bytes()
    (aside / hf.SINGLE).unlink()
    (aside / hf.SINGLE).symlink_to("/dev/full")
    assert fails(*command[-2:]) == f"{aside}: cannot be written (No space left on device); {again}"
    (aside / hf.SINGLE).unlink()
    (aside / hf.SINGLE).write_bytes(written)
    assert cli.main(command[3:]) == 0
    assert hf.load(tmp_path / "out")[0] == hf.load(intact / "hf")[0]
    for path, value in hf.parameters.flatten(hf.load(tmp_path / "out")[1]).items():
        np.testing.assert_array_equal(value, hf.parameters.flatten(hf.load(intact / "hf")[1])[path])


def test_too_little_room_is_seen_first(intact, fails, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    line = fails(intact / "hf", tmp_path / "out")
    assert line == f"{tmp_path / 'out'}: 1,004,192 bytes are needed, the disk has 1,000"
    assert not any(tmp_path.iterdir())
