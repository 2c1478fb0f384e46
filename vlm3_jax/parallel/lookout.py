"""A second, small process that hands on what a process of a run writes to stderr, and outlives it.

When a process of a run is lost, the runtime of the others aborts them from a thread of its own (in C++, beyond the
reach of Python), with a report of many lines and a stack. This one puts a line in its place. It needs the standard
library only, since it is started as a script.
"""

import atexit
import contextlib
import os
import re
import select
import signal
import sys
import time

# Lines with which the runtime's report begins, in some order; FATAL ends the process.
BEGIN = re.compile(rb"^[EF]\d{4} [\d:.]+ +\d+ (?:coordination_service\w*\.cc|client\.h):", re.M)
FATAL = re.compile(rb"^F\d{4} .*", re.M)
STACK = b"*** Check failure"
UNHEALTHY = re.compile(rb"tasks are unhealthy[^:]*:\s*((?:\d+[,\s]*)+)")
# An error may be told of seconds before it ends the process; after FATAL the rest comes at once.
HOLD_S, REST_S = 5.0, 0.2
# The last that a process writes: others that it has started may hold the pipe for longer.
END = b"\0end\0"
WAIT_S = 1.0
# The lookout's process, and where this one's stderr went before.
_started: tuple[int, int] | None = None


def lost(who: str, are: str = "is") -> str:
    """What is said of a lost process."""
    return f"{who} {are} lost; its own output says why; the same command goes on from the newest checkpoint"


def start(name: str) -> None:
    """Puts the lookout between this process's stderr and where it goes; `name` begins the line it may print."""
    global _started
    read, write = os.pipe()
    arguments = [sys.executable, "-I", "-S", __file__, name]
    child = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)])
    sys.stderr.flush()
    _started = child, os.dup(2)
    os.dup2(write, 2)
    os.close(read)
    os.close(write)


# Registered before jax is imported, so called after it has taken leave of the others.
@atexit.register
def finish() -> None:
    """Waits, a second at most, until the lookout has handed on everything: it may be killed when this process ends.

    The kernel does so where this is the first process of a container, SLURM and the container's runtime elsewhere.
    """
    global _started
    if _started is None:
        return
    (child, target), _started = _started, None
    sys.stderr.flush()
    end = time.monotonic() + WAIT_S
    with contextlib.suppress(OSError):
        os.write(2, END)
        while not os.waitpid(child, os.WNOHANG)[0] and time.monotonic() < end:
            time.sleep(0.005)
    os.dup2(target, 2)


def summary(report: bytes) -> str:
    """The runtime's report in a line."""
    found = UNHEALTHY.search(report)
    if found:
        numbers = found[1].replace(b",", b" ").split()
        listed = ", ".join(number.decode() for number in numbers)
        return lost(f"processes {listed}", "are") if len(numbers) > 1 else lost(f"process {listed}")
    if b"RegisterTask" in report:
        return "not all processes are there; start each with the same --coordinator, one that all of them can reach"
    if b"leader task" in report:
        return lost("process 0")
    _, _, status = report.partition(b"absl::Status: ")
    text = " ".join((status or FATAL.search(report)[0]).split(STACK)[0].decode(errors="replace").split())
    return f"{lost('another process')} ({text[:300]})"


def watch(source: int, target: int, name: str) -> None:
    """Copies until the source ends, or until the report of a lost process has been put in a line."""
    buffer, reporting, open_ = b"", False, True
    while open_:
        wait = (REST_S if FATAL.search(buffer) else HOLD_S) if reporting else (REST_S if buffer else None)
        if select.select([source], [], [], wait)[0]:
            data = os.read(source, 1 << 16)
            buffer, end, _ = (buffer + data).partition(END)
            open_ = bool(data) and not end
            quiet = not open_
        else:
            quiet = True
        if not reporting and (begin := BEGIN.search(buffer)):
            _write(target, buffer[: begin.start()])
            buffer, reporting = buffer[begin.start() :], True
        if reporting and FATAL.search(buffer):
            if quiet or STACK in buffer:
                _write(target, f"{name}: {summary(buffer)}\n".encode())
                return
        elif quiet:
            _write(target, buffer)
            buffer, reporting = b"", False
        elif not reporting:
            # An unfinished line may become the first of a report.
            done = buffer.rfind(b"\n") + 1
            _write(target, buffer[:done])
            buffer = buffer[done:]


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


if __name__ == "__main__":
    # A signal to the whole group is for the process that is looked after.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watch(0, 2, sys.argv[1])
