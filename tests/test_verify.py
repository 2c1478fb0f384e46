"""`vlm3 verify`: equal models are equal, and an altered one is found where it was altered."""

import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image

from vlm3_jax import cli
from vlm3_jax.checkpoint import hf, tiny
from vlm3_jax.errors import UserError
from vlm3_jax.model import params as parameters
from vlm3_jax.verify import verify


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return hf.load(tiny_model)


def altered(cfg, params, path, layer=None, factor=1.01):
    """The parameters with one HF tensor's values changed by a hundredth."""
    flat = {p: np.array(v) for p, v in parameters.flatten(params).items()}
    flat[path][... if layer is None else layer] *= factor
    return parameters.nest(flat)


def test_every_piece_is_named_and_equal(loaded, tiny_model):
    cfg, params = loaded
    result = verify(cfg, params, tiny_model)
    names = [p.name for p in result.pieces]
    wanted = ["pixels", "vision.patch_embed", *(f"vision.blocks.{i}" for i in range(cfg.vision.depth)), "vision.merger"]
    wanted += [f"vision.deepstack.{cfg.vision.taps.index(tap)}" for tap in sorted(cfg.vision.taps)]
    wanted += ["text.embed", *(f"text.layers.{i}" for i in range(cfg.text.layers)), "text.norm", "logits"]
    assert names == wanted
    assert result.first_divergence is None
    assert max(p.relative for p in result.pieces) < 1e-5
    assert 0 <= result.kl <= 1e-9
    assert result.agreement == 1
    assert max(p.difference for p in result.pieces) > 0, "the two sides are the same computation"


CHANGES = {
    "vision.patch_embed": ("vision", "patch"),
    "vision.blocks.0": ("vision", "table"),
    "vision.merger": ("vision", "merger", "fc1"),
    "vision.deepstack.1": ("vision", "tap_mergers", "fc2"),
    "text.embed": ("text", "embed"),
    "text.layers.1": ("text", "layers_tap", "o_proj"),
    "text.layers.2": ("text", "layers", "down_proj"),
    "text.norm": ("text", "norm"),
}


@pytest.mark.parametrize("piece", list(CHANGES))
def test_the_first_piece_that_differs_is_the_altered_one(piece, loaded, tiny_model):
    cfg, params = loaded
    path = CHANGES[piece]
    stacked = {r.path: r.stacked for r in parameters.table(cfg)}[path]
    # The second row, except where the altered layer is the first of its stack (taps stand in the order they fire).
    layer = (0 if piece in ("text.layers.2", "vision.deepstack.1") else 1) if stacked else None
    result = verify(cfg, altered(cfg, params, path, layer), tiny_model)
    assert result.first_divergence == piece
    assert piece in result.summary()


@pytest.mark.slow
def test_experts(tmp_path):
    folder = tiny.make(tmp_path / "moe", "moe")
    cfg, params = hf.load(folder)
    assert cfg.text.experts == 6
    assert verify(cfg, params, folder).first_divergence is None
    changed = altered(cfg, params, ("text", "layers_tap", "experts_in"), 1, 1.1)
    assert verify(cfg, changed, folder).first_divergence == "text.layers.1"


def test_command(tiny_model, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 72, 3), np.uint8)).save(picture)
    assert cli.main(["verify", str(tiny_model), f"--image={picture}"]) == 0
    assert "no piece differs" in capsys.readouterr().out
    assert cli.main(["verify", str(tiny_model), "--dtype=bfloat16"]) == 0
    cfg, params = hf.load(tiny_model)
    other = hf.save(tmp_path / "other", cfg, altered(cfg, params, ("vision", "merger", "fc2")), tiny_model)
    assert cli.main(["verify", str(other), f"--against={tiny_model}"]) == 1
    assert "first piece that differs: vision.merger" in capsys.readouterr().out


def test_what_is_missing_is_said(loaded, tiny_model, tmp_path, monkeypatch, capsys):
    cfg, params = loaded
    assert cli.main(["verify", str(tiny_model), f"--image={tmp_path / 'none.png'}"]) == 2
    assert "none.png" in capsys.readouterr().err
    with pytest.raises(UserError, match="float8"):
        verify(cfg, params, tiny_model, dtype="float8")
    text = dataclasses.replace(cfg.text, vocab_size=cfg.text.vocab_size + 1)
    grown = altered(cfg, params, ("text", "embed"))
    grown["text"]["embed"] = np.concatenate([grown["text"]["embed"], grown["text"]["embed"][:1]])
    with pytest.raises(UserError, match="configs differ"):
        verify(dataclasses.replace(cfg, text=text), grown, tiny_model)
    assert cli.main(["convert", str(tiny_model), str(tmp_path / "converted")]) == 0
    assert cli.main(["verify", str(tmp_path / "converted")]) == 2
    assert "--against" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "converted"), f"--against={tiny_model}"]) == 0
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["verify", str(tiny_model)]) == 2
    assert "torch is missing" in capsys.readouterr().err
