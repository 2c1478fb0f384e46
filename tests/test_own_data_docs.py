"""The commands of docs/own_data.md, run as they stand, on folders of the layouts that it shows."""

import os
import pathlib
import re
import shlex
import shutil

import pytest

from tests import own_data
from vlm3_jax import cli, kinds

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "own_data.md"


def sections() -> dict[str, list[str]]:
    """The commands of each section of the page."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = {title: re.findall(r"^    (vlm3 .*)$", body, re.MULTILINE) for title, body in zip(parts[::2], parts[1::2])}
    return {title: commands for title, commands in found.items() if commands}


def write_all(folder: pathlib.Path) -> None:
    own_data.rgbd(folder / "house")
    own_data.colmap(folder / "capture", frames=8)
    own_data.conversations(folder)


@pytest.mark.slow
@pytest.mark.parametrize("section", sections())
def test_commands_run_as_they_stand(section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path)
    for command in sections()[section]:
        program, *arguments = shlex.split(command)
        assert program == "vlm3"
        assert cli.main(arguments) == 0, (command, capsys.readouterr().err)
    runs = sorted(p.name for p in (tmp_path / "runs").iterdir())
    assert runs
    for run in runs:
        assert (tmp_path / "runs" / run / "export" / "config.json").is_file(), os.listdir(tmp_path / "runs" / run)
    shutil.rmtree(tmp_path / "runs")


def test_there_is_a_section_of_each_way():
    assert len(sections()) == 3
    assert all(any(command.startswith("vlm3 train") for command in commands) for commands in sections().values())


def test_the_table_of_fields_is_that_of_the_kinds():
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {kind: tuple(re.findall(r"`(\w+)`", fields)) for kind, fields in rows}
    assert told == {name: kind.fields for name, kind in kinds.KINDS.items()}
