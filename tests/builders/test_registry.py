"""The list of builders: complete, importable without the extra, and on its own floor."""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from vlm3_jax import builders
from vlm3_jax.builders import common, registry
from vlm3_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = pathlib.Path(builders.__path__[0])
# What reads files of data sets is the extra `builders`; these and heavier ones are imported when they are needed.
OPTIONAL = ("pyarrow", "h5py", "OpenEXR", "scipy", "apache_beam", "tensorflow_datasets", "jax", "torch", "tensorflow")
# Floors below the builders; the running of builders may also name a model.
BELOW = {
    "builders",
    "camera",
    "data",
    "errors",
    "files",
    "formats",
    "mixtures",
    "pose",
    "processor",
    "records",
    "storage",
    "shapes",
}
RUNNING = BELOW | {"model", "pretrained", "synth"}


@pytest.mark.parametrize("builder", registry.table().values(), ids=lambda builder: builder.name)
def test_every_builder_says_what_it_is(builder):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", builder.name)
    assert builder.folder in ("depth", "pairs", "objects", "bench")
    assert re.fullmatch(r"\d+\.\d+\.\d+", builder.version)
    assert builder.splits
    assert builder.held_out in ("", *builder.splits)
    for field in ("title", "layout", "labels", "licence", "checked"):
        assert getattr(builder, field), field
    assert (ROOT / builder.test).is_file(), builder.test
    assert builder.__doc__


def test_there_are_builders_and_near_names_are_told():
    assert {"taskonomy", "hm3d", "street_scenes", "realestate10k"} <= registry.table().keys()
    assert registry.get("taskonomy").title
    with pytest.raises(UserError, match="no builder 'taskonmy'; did you mean taskonomy"):
        registry.get("taskonmy")


def test_optional_modules_are_imported_when_they_are_needed():
    code = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
from vlm3_jax.builders import registry
from vlm3_jax.builders.running import shards
print(len(registry.table()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(registry.table())
    with pytest.raises(UserError, match=r"the module no_such_thing is missing: pip install"):
        common.module("no_such_thing")


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_builders_import_lower_floors_only(path):
    allowed = RUNNING if "running" in path.parts else BELOW
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "vlm3_jax":
            names = [f"vlm3_jax.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("vlm3_jax."):
                assert name.split(".")[1] in allowed, f"{path.name} imports {name}"
    assert len(path.read_text().splitlines()) <= 400


def test_the_page_of_data_sets_is_up_to_date():
    spec = importlib.util.spec_from_file_location("datasets_page", ROOT / "tools" / "datasets_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run python tools/datasets_page.py"
