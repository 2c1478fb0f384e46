"""What XLA must be told before jax starts: on CPUs some sums come out wrong now and then, from jaxlib 0.10.2 on.

XLA hands sums on CPUs to YNNPACK, which computes those over a broadcast axis wrongly when two threads share one: the
norm of the gradient is such a sum. docs/cpu_race.md has a program of one line and what was measured. XLA reads
XLA_FLAGS once a process, when jax starts its first back end.
"""

import importlib.util
import mmap
import os
import pathlib
import sys
import warnings

# "-reduce" takes sums out of what YNNPACK is given; its matrix products stay.
FLAG, VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-reduce"


def set_flags() -> None:
    """Adds the flag to XLA_FLAGS, for this process and those that it starts; on GPUs and TPUs it changes nothing.

    What stands there stays, and whoever names this very flag has chosen. Imports nothing; warns in one line where a
    CPU is in use already.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    # XLA takes a value without a dash in front for the name of a file that holds the flags.
    if flags and not flags.lstrip().startswith("-"):
        try:
            flags = pathlib.Path(flags).read_text()
        except OSError:
            flags = ""
    if FLAG in flags or not known():
        return
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}={VALUE}".strip()
    if started_on_cpu():
        warnings.warn(
            "jax was in use on the CPU before vlm3_jax was imported: results may be wrong (docs/cpu_race.md); "
            f"import vlm3_jax first, or set XLA_FLAGS={FLAG}={VALUE}",
            stacklevel=2,
        )


def known() -> bool:
    """Whether the installed jaxlib has the flag: XLA ends a process at the first flag that it does not know."""
    spec = importlib.util.find_spec("jaxlib")
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in pathlib.Path(folder).glob("*jax_common*"):
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
                if held.find(FLAG.removeprefix("--").encode()) >= 0:
                    return True
    return False


def started_on_cpu() -> bool:
    """Whether jax has started its back ends, and runs on the CPU."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized() and bridge.get_backend().platform == "cpu"
