"""Where the time of a run goes, and which programs were compiled and why."""

import collections
import contextlib
import logging
import resource
import sys
import time

import jax

# What is not a step: reading the config, weights and checkpoint; compiling; waiting for data; starting a save (and
# waiting for the one before); held-out losses.
KINDS = ("start", "compile", "wait", "save", "evaluate")
_COMPILE = "/jax/core/compile/"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_COMPILER = logging.getLogger("jax._src.compiler")
_FIRST = "its first call"
MOST_CHARACTERS = 300
_LOGGER = "jax._src.interpreters.partial_eval"


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
    """Counts what is compiled in this process while it is open, and keeps why (a context manager).

    JAX tells of every function that it traces what differs from the calls before, in its log; it is heard here and
    not printed.
    """

    def __init__(self):
        self.count, self.seconds = 0, 0.0
        self._new: list[tuple[str, float]] = []
        self._phases: collections.Counter[str] = collections.Counter()
        self._reasons = _Reasons()
        self._log = logging.getLogger(_LOGGER)

    def __enter__(self):
        self._before = self._log.propagate, jax.config.jax_explain_cache_misses
        self._log.addHandler(self._reasons)
        self._log.propagate = False
        _COMPILER.addFilter(_is_no_explanation)
        jax.config.update("jax_explain_cache_misses", True)
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)
        self._log.removeHandler(self._reasons)
        _COMPILER.removeFilter(_is_no_explanation)
        self._log.propagate = self._before[0]
        jax.config.update("jax_explain_cache_misses", self._before[1])

    def _heard(self, event: str, seconds: float, **fields) -> None:
        if not event.startswith(_COMPILE):
            return
        self.seconds += seconds
        name = str(fields.get("fun_name", "?")).removeprefix("jit(").removesuffix(")")
        # Tracing and lowering come before, under the same name.
        self._phases[name] += seconds
        if event == _COMPILED:
            self.count += 1
            self._new.append((name, self._phases.pop(name)))

    def news(self) -> list[str]:
        """A line for each program compiled since the last call that took a second, or was compiled before."""
        new, self._new = self._new, []
        lines = []
        for name, seconds in new:
            reason = self._reasons.of.pop(name, None)
            if seconds >= 1 or reason not in (None, _FIRST):
                lines.append(f"compiled {name} in {seconds:.1f} s: {reason or 'same types, so other shardings'}")
        return lines


class _Reasons(logging.Handler):
    """Keeps the newest explanation of each traced function, in one line."""

    def __init__(self):
        super().__init__()
        self.of: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Reads "never seen function: NAME id=..." or "for NAME defined at ...; what differs"."""
        lines = [line.strip(" *") for line in record.getMessage().splitlines()[1:]]
        if lines[0].startswith("never seen") and len(lines) > 1:
            self.of[lines[1].split()[0]] = _FIRST
        elif lines[0].startswith("for "):
            text = "; ".join(lines[2:])
            self.of[lines[0].split()[1]] = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


def _is_no_explanation(record: logging.LogRecord) -> bool:
    """Programs that a persistent cache does not hold are explained by the same setting."""
    return "CACHE MISS" not in record.getMessage()


def memory() -> dict[str, float]:
    """Largest memory of this process and, where the device tells, of its first device, GiB."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"memory_gib": largest / 2**30}
    device = jax.local_devices()[0].memory_stats()
    if device and "peak_bytes_in_use" in device:
        found["device_memory_gib"] = device["peak_bytes_in_use"] / 2**30
    return found
