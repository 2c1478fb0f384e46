"""The run of test_training_run.py on the data of RUN_DATA.

":SIGTERM@4" sends the process that signal at step 4, ":SIGINT@3+SIGINT@4" sends it two, ":SIGKILL@4/3" not before the
checkpoint of step 3, which is written in the background, is there.
"""

import os
import signal
import time

from tests.support import small_run
from vlm3_jax.checkpoint import locate
from vlm3_jax.train import metrics


def get_config(argument: str = ""):
    if argument:
        signals = [part.split("@") for part in argument.split("+")]
        write = metrics.Metrics.write

        def write_and_signal(self, row, board=False):
            write(self, row, board)
            for kind, when in signals:
                step, _, saved = when.partition("/")
                if row["step"] == int(step) and "loss" in row:
                    while saved and int(saved) not in locate.steps(self.path.parent):
                        time.sleep(0.05)
                    os.kill(os.getpid(), getattr(signal, kind))

        metrics.Metrics.write = write_and_signal
    return small_run(os.environ["RUN_MODEL"], os.environ["RUN_DATA"])
