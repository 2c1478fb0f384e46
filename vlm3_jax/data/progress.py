"""How far a walk through data is, and how long the rest takes: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable

import rich.console
import rich.progress

# Between two lines where nobody sees a bar.
PAUSE_S = 10.0


class Progress:
    """A context in which `advance` counts up to `total`; on stderr, so that results can be piped."""

    def __init__(self, what: str, total: int, active: bool = True):
        self._what, self._total, self._active = what, total, active
        self._console = rich.console.Console(file=sys.stderr)
        self._live = active and self._console.is_terminal
        self._bar = rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.MofNCompleteColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(what, total=total)
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self._done += count
        self._bar.advance(self._task, count)
        now = time.monotonic()
        if self._active and not self._live and now - self._said > PAUSE_S:
            self._said = now
            left = (now - self._start) / self._done * (self._total - self._done)
            text = f"{self._what}: {self._done:,} of {self._total:,}, about {left:,.0f} s left"
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str, print_line: Callable[[str], None] = print) -> None:
        """A line of the result, above the bar."""
        if self._live:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print_line(text)
