"""The photo commands on the tiny model really asked: its texts are random, the rest is not."""

import pathlib
import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

from vlm3_jax import cli
from vlm3_jax.commands.photo_options import MODEL
from vlm3_jax.tasks import TASKS, protocol


@pytest.fixture(scope="module")
def model(lively, tmp_path_factory) -> pathlib.Path:
    """A tiny model, asked in the short wording; images are of 64 px whatever the camera, so few programs compile."""
    folder = shutil.copytree(lively, tmp_path_factory.mktemp("photo") / "model")
    protocol.write(folder, {task: protocol.given(task, "short", resize="longest:64") for task in TASKS})
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
    """Photos of 64 x 48: one turned, with EXIF; one in a folder of its own; a text that says it is a photo."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 26
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=exif)
    (folder / "more").mkdir()
    for name in ("a.png", "more/b.png", "more/c.webp"):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def run(model, monkeypatch, capsys):
    """Runs a command on the model: (exit code, stdout, stderr)."""
    monkeypatch.setenv(MODEL, str(model))

    def call(*words) -> tuple[int, str, str]:
        code = cli.main([*map(str, words)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def fails(run):
    """Runs a command that must fail as a user's mistake; its line."""

    def call(*words) -> str:
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        return err.removeprefix(f"vlm3 {words[0]}: ").rstrip("\n")

    return call
