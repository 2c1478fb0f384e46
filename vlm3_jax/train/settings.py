"""What differs between the config of a saved run and the one it goes on with."""

# Fields that change what a run does on the side, not what it learns: nobody needs to be told.
HARMLESS = (
    "workdir",
    "mesh",
    "eval",
    "data.workers",
    "data.prefetch",
    "data.worker_timeout_s",
    "train.batch",
    "train.max_steps",
    "train.max_skipped",
    "train.log_every",
    "train.save_every",
    "train.eval_every",
    "train.keep",
    "train.keep_every",
    "train.keep_best",
    "train.profile",
    "train.wandb",
    "train.export",
)
_SHOWN = 4


def changes(saved: dict, config: dict) -> str:
    """ "FIELD OLD -> NEW, ..." of the fields that matter (nested dicts, as JSON has them); "" if there are none.

    A field that only one of them has is new or gone in this version of the program.
    """
    old, new = dict(_fields(saved)), dict(_fields(config))
    found = [
        f"{name} {old[name]} -> {new[name]}"
        for name in sorted(old.keys() & new.keys())
        if old[name] != new[name] and not _is_harmless(name)
    ]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return ", ".join(found[:_SHOWN] + more)


def _is_harmless(name: str) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in HARMLESS)


def _fields(tree: dict, above: str = ""):
    """(dotted name, value) of every field, and the names in the mixture."""
    if above == "data.components.":
        yield "data.components", ", ".join(sorted(tree))
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
