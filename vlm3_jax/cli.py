"""The command line: `vlm3 COMMAND [--config=FILE_OR_NAME] [--config.field=value] [--workdir=DIR] ...`."""

import argparse
import errno
import io
import os
import signal
import sys
import warnings

from vlm3_jax import storage
from vlm3_jax.commands import calibrate, checkpoint, data, demo, evaluate, photo, plan, score, train
from vlm3_jax.errors import UserError

# In the order of the help.
GROUPS = (photo, train, evaluate, score, calibrate, checkpoint, plan, demo, data)
# What the disk or its owner refuses, wherever it happens; any other error of the system may be a fault of ours.
REFUSED = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
# Options that name local files only: what is run as a program, and a picture to look at.
LOCAL = ("config", "picture")


def main(argv: list[str] | None = None) -> int:
    """Runs one command; a UserError becomes one line on stderr and its exit code."""
    if argv is None:
        _any_text_out()
        # It names no file; that the camera is a guess then is said.
        warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
    argv, runner = _split_runner(sys.argv[1:] if argv is None else argv)
    fields = [arg.removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
    parser = make_parser()
    args = parser.parse_args([arg for arg in argv if not arg.startswith("--config.")])
    if fields and "config" not in args:
        parser.error(f"--config.{fields[0]}: this command takes no config")
    args.runner = runner
    try:
        _check_paths(args)
        code = args.run(args, fields) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who read the output is gone (`vlm3 ... | head`); the interpreter would complain when it flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"vlm3 {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.code
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        place = error.filename2 or error.filename
        where = f"{place}: " if place else ""
        print(f"vlm3 {args.command}: {where}{error.strerror}; mend that and give the command again", file=sys.stderr)
        return UserError.code
    except KeyboardInterrupt:
        print(f"vlm3 {args.command}: interrupted", file=sys.stderr)
        return 130


def _any_text_out() -> None:
    """Names of files need not be text, nor has every terminal all letters: what cannot be shown ends no command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


def _split_runner(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of `vlm3 data build` before "--", and those of Beam's runner after it."""
    if argv[:2] != ["data", "build"] or "--" not in argv:
        return argv, []
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def _check_paths(args) -> None:
    """UserError, before anything else happens, for a path with a scheme that nobody reads."""
    for name, value in vars(args).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and name not in ("images", "first", "second", "question", "runner"):
                (storage.local_path if name in LOCAL else storage.path)(text, name)


def make_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    parser = argparse.ArgumentParser(
        prog="vlm3",
        description="VLM3 in JAX: train, evaluate and use metric 3-D vision-language models.",
        epilog="Commands with a config take --config.FIELD=VALUE for any of its fields, nested ones with dots.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
