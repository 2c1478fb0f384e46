"""The run of test_training_run.py on the data of RUN_DATA.

":SIGTERM@4" sends the process that signal at step 4, ":SIGINT@3+SIGINT@4" sends it two.
"""

import os
import signal

from tests.support import small_run
from vlm3_jax.train import metrics


def get_config(argument: str = ""):
    if argument:
        signals = [part.split("@") for part in argument.split("+")]
        write = metrics.Metrics.write

        def write_and_signal(self, row, board=False):
            write(self, row, board)
            for kind, step in signals:
                if row["step"] == int(step) and "loss" in row:
                    os.kill(os.getpid(), getattr(signal, kind))

        metrics.Metrics.write = write_and_signal
    return small_run(os.environ["RUN_MODEL"], os.environ["RUN_DATA"])
