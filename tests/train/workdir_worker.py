"""A process that opens checkpoints and claims a workdir: `workdir_worker.py WORKDIR [HOST:PORT PROCESSES PROCESS]`.

Says what is refused, or "claimed"; then a process without others waits.
"""

import contextlib
import pathlib
import sys
import time

from vlm3_jax.errors import UserError
from vlm3_jax.parallel import processes
from vlm3_jax.train import checkpoints, workdir


@contextlib.contextmanager
def said():
    try:
        yield
    except UserError as error:
        print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    folder, *place = sys.argv[1:]
    checkpoints.SHOWN_S = workdir.SHOWN_S = 2
    with processes.joined("train", *place[:1], *map(int, place[1:])):
        if place:
            with said():
                checkpoints.Checkpoints(folder)
        with said(), workdir.claimed(pathlib.Path(folder)):
            print("claimed", flush=True)
            time.sleep(0 if place else 600)
