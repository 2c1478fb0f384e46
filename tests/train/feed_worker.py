"""A process that reads the data of a run: `feed_worker.py MODEL DATA WORKDIR [HOST:PORT PROCESSES PROCESS]`.

Prints JSON: what it was told of four batches, of held-out data, and where its time went; the last process is slow.
"""

import json
import sys
import time

import jax

from tests.support import small_run
from vlm3_jax.config import component_config
from vlm3_jax.data.quarantine import Quarantine
from vlm3_jax.parallel import processes
from vlm3_jax.setup import Setup
from vlm3_jax.train.feed import Feed, quarantine_file
from vlm3_jax.train.goodput import Compilations, Goodput
from vlm3_jax.train.held_out import HeldOut, count_in_all

BATCHES, SLOW_S = 4, 0.5


def settings(model, data, workdir):
    """A run of four rows a batch on a DepthLM file, some records of which are broken."""
    config = small_run(model, data, workdir)
    entry = dict(config.data.components.depth) | {"kind": "depthlm", "depth_kind": "z"}
    config.data.components = {"depth": component_config(**entry)}
    config.data.rows, config.data.max_bad_fraction, config.data.workers = 4, 0.9, 0
    return config


def main(model, data, workdir) -> dict:
    """What this process is told."""
    setup = Setup.from_config(settings(model, data, workdir))
    components = setup.components(setup.config.data.components)
    aside = Quarantine(quarantine_file(setup.workdir), 0.9)
    setup.config.eval.loss_batches = 1
    held_out = HeldOut(setup, components[0], aside)
    # A second time nothing is new.
    read = [sum(1 for _ in held_out.batches()) for _ in range(2)]
    assert read == [1, 1], read
    bad = count_in_all(aside, setup)
    with Compilations() as compilations:
        goodput = Goodput(compilations)
        feed, batches = Feed(setup, components, None, goodput), []
        slow = jax.process_count() > 1 and jax.process_index() == jax.process_count() - 1
        for _ in range(BATCHES):
            time.sleep(SLOW_S if slow else 0)
            batch = feed.next()
            batches.append([batch.stats["bad"], batch.stats["passed_over"], batch.samples, batch.checksum])
        feed.close()
        times = goodput.row()
    return {"batches": batches, "held_out": [bad, aside.samples], "own": aside.bad, "times": times}


if __name__ == "__main__":
    model, data, workdir, *place = sys.argv[1:]
    with processes.joined("feed", *place[:1], *map(int, place[1:])):
        print(json.dumps(main(model, data, workdir)))
