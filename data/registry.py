"""The one list of builders: every `Builder` with a name in a file of this folder is on it."""

import difflib
import functools
import importlib
import pkgutil

from vlm3_jax import builders
from vlm3_jax.builders.common import Builder
from vlm3_jax.errors import UserError

NOT_SETS = ("common", "registry")


@functools.cache
def table() -> dict[str, type[Builder]]:
    """Name -> builder, in order of folder and name."""
    found: dict[str, type[Builder]] = {}
    for info in sorted(pkgutil.iter_modules(builders.__path__), key=lambda info: info.name):
        if info.ispkg or info.name in NOT_SETS:
            continue
        module = importlib.import_module(f"{builders.__name__}.{info.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and issubclass(value, Builder) and value.__module__ == module.__name__
            if own and value.name:
                if value.name in found:
                    raise ValueError(f"two builders are called {value.name!r}")
                found[value.name] = value
    return dict(sorted(found.items(), key=lambda entry: (entry[1].folder, entry[0])))


def get(name: str) -> type[Builder]:
    """The builder of a name; UserError with the nearest ones if there is none."""
    known = table()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known) or 'none'}"
    raise UserError(f"no builder {name!r}{hint}")
