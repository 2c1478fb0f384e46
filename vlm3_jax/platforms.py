"""Which accelerators jax looks for: not for a TPU that is not there.

libtpu is installed for its compiler (`vlm3 plan`, the `test` extra) on machines without a TPU. Whatever starts jax
there would print libtpu's errors about it before its own first line.
"""

import glob
import importlib.metadata
import importlib.util
import os
import pathlib

GOOGLE = "0x1ae0"
# Network cards and disks of Google's clouds bear its number too: the first byte of a PCI device's class.
NO_CHIPS = ("0x01", "0x02")
CUDA = ("xla_cuda12", "xla_cuda13")
# What Google's clouds set on their TPU machines; jax itself sets other names that begin with TPU_.
TPUS = ("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "TPU_TOPOLOGY")
GPUS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")


def leave_out_absent_tpu() -> None:
    """Sets JAX_PLATFORMS, for this process and those that it starts, if libtpu is installed and no TPU is here.

    What stands there stays. To be called before jax is imported; imports nothing.
    """
    if "JAX_PLATFORMS" in os.environ or not importlib.util.find_spec("libtpu") or has_tpu():
        return
    plugins = {plugin.name for plugin in importlib.metadata.entry_points(group="jax_plugins")}
    if plugins - set(CUDA):
        # Of other devices nothing is known here.
        return
    has_gpu = plugins and any(map(os.path.exists, GPUS))
    os.environ["JAX_PLATFORMS"] = "cuda,cpu" if has_gpu else "cpu"


def has_tpu() -> bool:
    """Whether this machine may have a TPU: a device file, a chip on the bus, or an environment that speaks of one."""
    if any(name in os.environ for name in TPUS) or glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return True
    devices = (pathlib.Path(path).parent for path in glob.glob("/sys/bus/pci/devices/*/vendor"))
    return any(_read(at / "vendor") == GOOGLE and not _read(at / "class").startswith(NO_CHIPS) for at in devices)


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
