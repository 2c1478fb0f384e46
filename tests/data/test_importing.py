"""`vlm3 data import`: what it finds in folders, and configs that train on them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from small_data import blank_depthlm, small_record, write_shard

from tests import own_data
from vlm3_jax import cli
from vlm3_jax import config as configs
from vlm3_jax.data import importing
from vlm3_jax.data.sources import make_source
from vlm3_jax.errors import UserError


def shards(folder):
    folder.mkdir()
    write_shard(folder / "a.array_record", [small_record(n) for n in range(10)])
    return folder


def depthlm(folder):
    folder.mkdir()
    blank_depthlm(folder / "x.jsonl", [(32, 24)], 30.0, 10)
    return folder / "x.jsonl"


CASES = {
    "records": (shards, {}, ("depth",), "10 records"),
    "depthlm": (depthlm, {"depth_kind": "z"}, ("depth",), "10 images"),
    "rgbd": (own_data.rgbd, {"depth_kind": "z"}, ("depth", "correspondence", "pose"), "2 scenes, 8 frames, 8 with de"),
    "wai": (own_data.wai, {}, ("depth", "correspondence", "pose"), "2 scenes, 6 frames, 2 scenes metric, 2 with cov"),
    "colmap": (own_data.colmap, {"held_out": 0.4}, ("correspondence", "pose", "depth"), "1 captures, 6 images"),
    "conversations": (
        own_data.conversations,
        {"camera": "fov:60"},
        ("objects", "conversation"),
        "8 conversations, the first of 4 turns about 1 images and 3 regions",
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_folder_is_known_and_its_config_opens(kind, tmp_path):
    write, given, tasks, about = CASES[kind]
    path = write(tmp_path / "Own data 1")
    if kind == "conversations":
        given = {**given, "images": str(tmp_path / "Own data 1" / "photos")}
    found = importing.look(path)
    assert (found.kind, found.tasks) == (kind, tasks)
    assert about in found.about
    for task in tasks:
        if (kind, task) == ("colmap", "depth"):
            given = {**given, "depth_scale": 1.0}
        entry = importing.make_entry(str(path), task=task, **given)
        assert all(entry.counts.values())
        config = configs.load(str(importing.write_config(entry, str(tmp_path / f"{task}.py"))))
        for table, count in ((config.data, entry.counts["train"]), (config.eval, entry.counts["held_out"])):
            ((name, fields),) = table.components.items()
            assert len(make_source(name, fields)) == count
        assert config.train.samples == 3 * entry.counts["train"]
    whole = make_source("all", {**entry.fields, "covisibility_min": 0.0})
    assert entry.counts["train"] < len(whole)


@pytest.mark.parametrize(
    ("scenes", "share", "held_out"),
    [("aaabbbbccc", 0.1, 3), ("aaabbbbccc", 0.5, 7), ("aaabbbbccc", 0.9, 9), ("aaaaaaaaaa", 0.2, 2), ("", 0.2, 2)],
)
def test_parts_of_shards_end_with_a_scene(tmp_path, scenes, share, held_out):
    """If another one begins later; else some records of the last scene are in both parts."""
    items = [dataclasses.replace(small_record(n), scene=scenes[n : n + 1]) for n in range(10)]
    write_shard(tmp_path / "a.array_record", items)
    entry = importing.make_entry(str(tmp_path), held_out=share)
    assert entry.counts == {"train": 10 - held_out, "held_out": held_out}


def test_frames_without_depth_are_no_riddle(tmp_path):
    folder = own_data.rgbd(tmp_path / "house")
    for maps in folder.glob("*/depth"):
        shutil.rmtree(maps)
    entry = importing.make_entry(str(folder))
    assert (entry.found.tasks, entry.counts["train"] > 0) == (("pose",), True)


def test_pairs_of_one_kind_need_their_own_extra(tmp_path):
    pytest.importorskip("h5py")
    path = own_data.gta_sfm(tmp_path / "gta")
    entry = importing.make_entry(str(path), task="pose")
    assert (entry.found.kind, entry.fields["gaps"]) == ("gta_sfm", (1, 5))
    folder = own_data.realestate10k(tmp_path / "re10k")
    entry = importing.make_entry(str(folder), images=str(folder / "frames"))
    assert (entry.found.kind, entry.fields["task"]) == ("realestate10k", "pose")


def test_what_only_the_user_knows_is_asked_for(tmp_path):
    folder = own_data.rgbd(tmp_path / "house")
    with pytest.raises(UserError, match="say what the depth maps hold: --depth-kind=z"):
        importing.make_entry(str(folder))
    with pytest.raises(UserError, match=r"--task=objects: .* has labels for depth, correspondence, pose"):
        importing.make_entry(str(folder), task="objects", depth_kind="z")
    with pytest.raises(UserError, match="no depth in metres; set depth_scale"):
        importing.make_entry(str(own_data.colmap(tmp_path / "capture")), task="depth")


def test_what_is_nothing_says_what_is_in_it(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        importing.look(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("hello\nworld\n")
    with pytest.raises(UserError, match=r"nothing that can be read is in it \(notes.txt\); kinds are records: "):
        importing.look(tmp_path)
    (tmp_path / "camera.json").write_text(json.dumps([{"question": "?"}]))
    with pytest.raises(UserError, match=r"\(camera.json, notes.txt\); .* for published data sets see `vlm3 data build"):
        importing.look(tmp_path)
    with pytest.raises(UserError, match="its first item is no conversation: no turns"):
        importing.look(tmp_path / "camera.json")
    (tmp_path / "talk.json").write_text(json.dumps([{"instruction": "?", "output": "!"}]))
    with pytest.raises(UserError, match=r"give the file that is meant, such as .*talk.json"):
        importing.look(tmp_path)


def test_a_capture_too_short_to_hold_pairs_out_says_so(tmp_path):
    folder = own_data.rgbd(tmp_path / "house")
    shutil.rmtree(folder / "room1")
    with pytest.raises(UserError, match=r"held_out: no two frames .* \(of what is held out; a larger --held-out"):
        importing.make_entry(str(folder), task="pose", depth_kind="z", gaps=(1,), held_out=0.1)
    assert importing.make_entry(str(folder), task="pose", depth_kind="z", gaps=(1,), held_out=0.5).counts["held_out"]


def test_an_empty_folder_and_nothing_held_out_are_refused(tmp_path):
    with pytest.raises(UserError, match="it is empty"):
        importing.make_entry(str(tmp_path))
    with pytest.raises(UserError, match="--held-out=0"):
        importing.make_entry(str(tmp_path), held_out=0.0)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_data.rgbd(tmp_path / "house")
    command = ["data", "import", "house", "--depth-kind=z", "--out=house.py", "--task=pose", "--gaps=1,2"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    for part in ("house: rgbd, folders of images", "5 records of train, 5 records of held out", "written: house.py"):
        assert part in said
    assert "vlm3 train --config=house.py:tiny --workdir=runs/house-tiny" in said
    assert cli.main(command) == 2
    assert "house.py: it is there already" in capsys.readouterr().err
    assert cli.main([*command[:-1], "--gaps=one"]) == 2
    assert "--gaps=one: write whole numbers" in capsys.readouterr().err


def test_names_are_names(tmp_path):
    names = {"Own data 1": "own_data_1", "7scenes": "own_7scenes", "class": "own_class", "é": "é"}
    for text, name in names.items():
        assert importing._name(tmp_path / text) == name
    assert np.unique(list(names.values())).size == len(names)
