"""Modules that are installed for some file formats only."""

import importlib

from vlm3_jax.errors import UserError


def module(name: str, extra: str = "builders"):
    """An optional module that reads files; UserError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f'the module {name} is missing: pip install "vlm3-jax[{extra}]"') from None
