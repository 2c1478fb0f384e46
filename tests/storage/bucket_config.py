"""The run of test_training_in_buckets.py; its argument as in tests/train/run_config.py: ":SIGTERM@4"."""

import os
import signal

from tests.support import small_run
from vlm3_jax.train import metrics


def get_config(argument: str = ""):
    signal_at(argument)
    config = small_run(os.environ["RUN_MODEL"], os.environ["RUN_DATA"])
    config.train.max_steps, config.train.save_every, config.train.eval_every = 12, 4, 6
    return config


def signal_at(argument: str) -> None:
    """Has this process send itself the signals of "SIGTERM@4+SIGKILL@9" when it has told the losses of those steps."""
    for part in filter(None, argument.split("+")):
        kind, step = part.split("@")
        write = metrics.Metrics.write

        def write_and_signal(self, row, board=False, kind=kind, step=int(step), write=write):
            write(self, row, board)
            if row["step"] == step and "loss" in row:
                os.kill(os.getpid(), getattr(signal, kind))

        metrics.Metrics.write = write_and_signal
