"""`vlm3 data build`: names, options and their mistakes; rendered scenes as before."""

import json

import pytest
from array_record.python.array_record_module import ArrayRecordReader

from tests.builders import streets
from tests.builders.test_running import contents
from vlm3_jax import cli
from vlm3_jax.builders import registry


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("streets"), 3)


def run(*words) -> int:
    return cli.main(["data", "build", *map(str, words)])


def test_list_names_every_set(capsys):
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["synth:", *registry.table()]


def test_a_set_goes_where_mixtures_look(raw, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLM3_DATA", str(tmp_path / "data"))
    assert run("street_scenes", f"--raw={raw}", "--workers=1") == 0
    out = tmp_path / "data" / "depth" / "street_scenes" / "train"
    assert capsys.readouterr().out.startswith(f"{out}: 3 records of 3 items in 1 shards, ")
    about = json.loads((out / "build.json").read_text())
    assert (about["builder"], about["split"], about["counts"]["images"]) == ("street_scenes", "train", 3)
    streets.write(tmp_path / "raw", 1, split="val")
    assert run("street_scenes", f"--raw={tmp_path / 'raw'}", "--split=val") == 0
    assert (out.parent / "held_out" / "build.json").exists()
    before = contents(out)
    assert run("street_scenes", f"--raw={raw}", "--workers=1") == 0
    assert contents(out) == before


def test_stored_sizes_are_those_of_the_model(raw, tmp_path, tiny_model):
    assert run("street_scenes", f"--raw={raw}", f"--out={tmp_path / 'out'}", "--focal=73", f"--final={tiny_model}") == 0
    images = json.loads((tmp_path / "out" / "build.json").read_text())["images"]
    assert images["resize"] == "focal:73"
    assert images["vision"]["patch_size"] == 4


@pytest.mark.parametrize("name", [[], ["synth"]])
def test_rendered_scenes_with_and_without_their_name(tmp_path, name):
    out = tmp_path / "scenes"
    assert run(*name, f"--out={out}", "--count=2", "--width=32", "--height=24", "--focal=32", "--workers=1") == 0
    reader = ArrayRecordReader(str(next(out.glob("*.array_record"))))
    assert reader.num_records() == 2
    reader.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["street_scene", "--raw=x"], "no builder 'street_scene'; did you mean street_scenes"),
        (["street_scenes"], "--raw: give the folder of street_scenes as it is published"),
        (["street_scenes", "--raw={raw}", "--out={out}", "--focal=wide"], "--focal: resize is 'focal:wide'"),
        (["street_scenes", "--raw={raw}", "--out={out}", "--quality=best"], "--quality=best: give a JPEG quality"),
        (["street_scenes", "--raw={raw}", "--out={out}", "--workers=0"], "--workers=0"),
        (["street_scenes", "--raw={raw}", "--out={out}", "--", "--runner=Dask"], "give --beam with them"),
        (["street_scenes", "--raw={raw}/train", "--out={out}"], "about.json: not there; write what the depths are"),
        (["synth"], "--out: give the folder to write"),
        (["synth", "--out={out}", "--focal=wide"], "--focal=wide: give a focal length in px"),
    ],
)
def test_a_mistake_costs_one_line(raw, tmp_path, capsys, words, message):
    out = tmp_path / "out"
    assert run(*(word.format(raw=raw, out=out) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlm3 data: ")
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()
