"""Options that several commands share, and the config that they name."""

import argparse
import sys
from collections.abc import Callable

from vlm3_jax import config as configs
from vlm3_jax import config_rules


def command(parsers, name: str, run: Callable, help: str) -> argparse.ArgumentParser:
    """A command of `parsers`; run(args, fields) does it, and its result, if there is one, is the exit code."""
    sub = parsers.add_parser(name, help=help, description=help)
    sub.set_defaults(run=run)
    return sub


def with_base(sub) -> None:
    """The option of PEFT adapters."""
    sub.add_argument("--base", default="", help="of a PEFT adapter folder: its base, if not the one that it names")


def with_config(sub, required: bool = True) -> None:
    """The config, and the fields of it that have options of their own."""
    sub.epilog = (
        "--config.FIELD=VALUE sets any field of the config (vlm3_jax/config.py has them all). A new component "
        "joins by its path: --config.data.components.NAME.path=SHARDS --config.data.components.NAME.task=TASK; "
        "held-out data likewise under eval.components."
    )
    sub.add_argument("--config", required=required, help="a config file, or the name of a shipped one (demo)")
    sub.add_argument(
        "--workdir", help="for everything that is written: a folder, gs://... or s3://... (config.workdir)"
    )
    sub.add_argument("--model", help="HF directory, finished workdir, hub name or tiny:demo (config.model)")
    with_base(sub)


def with_processes(sub) -> None:
    """Where the processes of one run meet."""
    sub.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens, if no launcher says it")
    sub.add_argument("--processes", type=int, metavar="N", help="processes of the run; 1: whatever the launcher says")
    sub.add_argument("--process", type=int, metavar="I", help="the number of this one, from 0")


def wide_console():
    """For wide tables: as wide as the terminal, and wide where there is none."""
    return console(None if sys.stdout.isatty() else 200)


def console(width: int | None = None):
    """For tables. Names may have brackets, which are no markup."""
    import rich.console

    return rich.console.Console(width=width, markup=False)


def read_config(args, fields):
    """The config of --config (else the defaults) with the overrides of the command line, checked and locked."""
    config = configs.load(args.config) if args.config else configs.base()
    for name in ("workdir", "model", "base"):
        if getattr(args, name, None):
            config[name] = getattr(args, name)
    if getattr(args, "profile", None):
        config.train.profile = args.profile
    configs.override(config, fields)
    config_rules.check(config)
    if config.mesh.cpu_devices:
        import jax

        jax.config.update("jax_num_cpu_devices", config.mesh.cpu_devices)
    return config.lock()
