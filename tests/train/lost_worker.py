"""A process among others that does nothing but be there: `lost_worker.py HOST:PORT PROCESSES PROCESS`.

Says "ready" when all are there. No collective tells it of the others, only the runtime's heartbeats.
"""

import sys
import time

import numpy as np

from vlm3_jax.parallel import processes

if __name__ == "__main__":
    with processes.joined("train", sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
        processes.gather({"here": np.ones(1)})
        print("ready", flush=True)
        time.sleep(600)
