"""Small JSON files read with clear errors, and folders that appear whole or not at all."""

import json
import pathlib
import shutil
from typing import Any

from vlm3_jax.errors import UserError


def read_json(path) -> Any:
    """Parsed JSON of a small file; UserError names the file if it is missing or not JSON."""
    path = pathlib.Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory holds config.json, safetensors, tokenizer") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


def replace_dir(aside: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a finished directory in its place; the old one goes only when the new one stands."""
    old = target.with_name(target.name + ".old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    if old.exists():
        shutil.rmtree(old)
