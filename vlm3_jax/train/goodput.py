"""Where the time of a run goes, and how much of it the compiler takes."""

import collections
import contextlib
import resource
import sys
import time

import jax

# What is not a step: reading the config, weights and checkpoint; compiling; waiting for data; starting a save (and
# waiting for the one before); held-out losses.
KINDS = ("start", "compile", "wait", "save", "evaluate")
_COMPILE = "/jax/core/compile/"
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Goodput:
    """Splits the wall time of this process by kind; what is in none of `KINDS` is steps, the good part.

    Compiling counts as such wherever it happens. Time lost by a kill (the steps done again) is not seen here.
    """

    def __init__(self, compilations: "Compilations"):
        self.compilations = compilations
        self._begun, self._spent = time.perf_counter(), collections.Counter()

    @contextlib.contextmanager
    def spent_on(self, kind: str):
        """The time inside belongs to `kind`."""
        start, compiled = time.perf_counter(), self.compilations.seconds
        try:
            yield
        finally:
            compiled = self.compilations.seconds - compiled
            self._spent[kind] += max(0.0, time.perf_counter() - start - compiled)

    def row(self) -> dict[str, float]:
        """Seconds of each kind since the start, `goodput` = the share of steps, compilations and memory."""
        spent = {**self._spent, "compile": self.compilations.seconds}
        times = {kind: float(spent.get(kind, 0.0)) for kind in KINDS}
        whole = time.perf_counter() - self._begun
        times["step"] = max(0.0, whole - sum(times.values()))
        row = {f"time/{kind}": seconds for kind, seconds in times.items()}
        row |= {"goodput": times["step"] / sum(times.values()), "compilations": self.compilations.count}
        return row | memory()


class Compilations:
    """Counts the programs compiled in this process while it is open, and the seconds that takes (a context manager)."""

    def __init__(self):
        self.count, self.seconds = 0, 0.0

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_) -> None:
        # Tracing and lowering, which come before, count as well.
        if event.startswith(_COMPILE):
            self.seconds += seconds
            self.count += event == _COMPILED


def memory() -> dict[str, float]:
    """Largest memory of this process and, where the device tells, of its first device, GiB."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"memory_gib": largest / 2**30}
    device = jax.local_devices()[0].memory_stats()
    if device and "peak_bytes_in_use" in device:
        found["device_memory_gib"] = device["peak_bytes_in_use"] / 2**30
    return found
