"""Threads for reading and decoding that are watched over: a call that fails or hangs is tried again, then given up.

A thread cannot be ended from outside, so one that hangs (a network file system that never answers) is left behind and
another takes its place. All are daemons: none keeps the program from ending.
"""

import dataclasses
import logging
import queue
import reprlib
import threading
import time
from collections.abc import Callable
from typing import Any

from vlm3_jax.errors import Again, BadRecord, UserError
from vlm3_jax.storage import ATTEMPTS, Unreadable

# So many calls given up without a good one between them: not single files but the storage, or the code, is broken.
MAX_GIVEN_UP = 20
# How long `close` waits for calls that are under way.
GRACE_S = 5.0

_log = logging.getLogger(__name__)


class Closed(Exception):
    """It was time to stop before the call was done."""


@dataclasses.dataclass(eq=False)
class _Call:
    """A call of `function(item)`: its outcome, once it is done."""

    function: Callable
    item: Any
    name: Callable[[], str]
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None
    failures: int = 0


class Workers:
    """`count` threads; 0 makes every call in the caller's thread, where a hang cannot be noticed.

    A call may take `timeout_s` seconds. Whoever waits for a call when `stop` is set gets Closed.
    """

    def __init__(self, count: int, timeout_s: float, stop: threading.Event):
        self._timeout_s, self._stop = timeout_s, stop
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: dict[threading.Thread, tuple[_Call, float]] = {}
        self._given_up = 0
        self._count = count
        self._threads: set[threading.Thread] = set()

    def submit(self, function: Callable, item: Any, name: Callable[[], str]) -> Callable[[], Any]:
        """Starts `function(item)`, called `name()` in reports, and returns what waits for its result.

        The function must bear being called again. Its UserError is raised as it is; BadRecord if it failed otherwise,
        or hung, twice; UserError if too many calls did, or ended with Unreadable.
        """
        call = _Call(function, item, name)
        if self._count:
            self._calls.put(call)
            while len(self._threads) < self._count:
                self._threads.add(self._start())
        else:
            while not call.done.is_set():
                self._settle(call, *_attempt(call))
        return lambda: self._result(call)

    def close(self) -> None:
        """Drops what has not begun and ends the threads; those that hang are left behind."""
        while not self._calls.empty():
            self._calls.get()
        for _ in self._threads:
            self._calls.put(None)
        end = time.monotonic() + GRACE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _result(self, call: _Call) -> Any:
        """Waits for the call and looks after the threads meanwhile."""
        while not call.done.wait(min(0.1, self._timeout_s / 4)):
            if self._stop.is_set():
                raise Closed
            self._look_after()
        if call.error is not None:
            raise call.error
        return call.value

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="vlm3-data", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        me = threading.current_thread()
        while (call := self._calls.get()) is not None:
            with self._lock:
                self._running[me] = call, time.monotonic()
            outcome = _attempt(call)
            with self._lock:
                if self._running.pop(me, None) is None:
                    # It took too long: another thread has this one's place, and perhaps the call.
                    return
            self._settle(call, *outcome)

    def _look_after(self) -> None:
        """Replaces the threads that take too long or have died, and settles their calls."""
        now = time.monotonic()
        with self._lock:
            lost = {
                thread: call
                for thread, (call, start) in self._running.items()
                if now - start > self._timeout_s or not thread.is_alive()
            }
            for thread in lost:
                del self._running[thread]
        for thread, call in lost.items():
            self._threads.remove(thread)
            self._threads.add(self._start())
            what = f"no answer within {self._timeout_s:g} s" if thread.is_alive() else "its thread died"
            self._settle(call, None, TimeoutError(what))

    def _settle(self, call: _Call, value: Any, error: BaseException | None) -> None:
        """Takes the outcome of an attempt: the call is done, or goes to the end of the queue once more."""
        if error is None or (isinstance(error, UserError) and not isinstance(error, Unreadable)):
            self._given_up = 0
            call.value, call.error = value, error
            call.done.set()
            return
        call.failures += 1
        if isinstance(error, Unreadable):
            # It was tried again where it was read.
            last, reason = True, error.why
        else:
            last = call.failures == ATTEMPTS
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            error = BadRecord(f"failed {ATTEMPTS} times, the last with {reason}")
        name = _name(call)
        _log.warning("data: %s: %s; %s", name, reason, "set aside" if last else "trying once more")
        if last:
            self._given_up += 1
            call.error = error
            if self._given_up >= MAX_GIVEN_UP:
                kind = Again if getattr(error, "passing", False) else UserError
                call.error = kind(
                    f"{self._given_up} records in a row failed {ATTEMPTS} times each, the last, {name}, with "
                    f"{reason}: see that the data can be read (vlm3 data check), and start again"
                )
            call.done.set()
        elif self._count:
            self._calls.put(call)


def _name(call: _Call) -> str:
    """What reports call it: a thread must not die of a name that cannot be made, for its call would wait for ever."""
    try:
        return call.name()
    except Exception:
        return reprlib.repr(call.item)


def _attempt(call: _Call) -> tuple[Any, BaseException | None]:
    """(value, error) of calling the function; whatever the error is, the thread lives on."""
    try:
        return call.function(call.item), None
    except (Exception, SystemExit) as error:
        return None, error
