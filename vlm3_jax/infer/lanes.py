"""Lanes: iterators that run at the same time, each in a thread of its own.

A program on a CPU leaves cores idle between its operations and in those that one thread does; two programs fill them.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
_END = object()


def side_by_side(lanes: Sequence[Iterator[Item]]) -> Iterator[Item]:
    """What the iterators give, in the order in which it comes; the order of each is kept.

    An error in one is raised here. When it is, or nobody asks any more, the others end at their next item.
    """
    if len(lanes) == 1:
        yield from lanes[0]
        return
    found: queue.SimpleQueue = queue.SimpleQueue()
    over = threading.Event()

    def run(lane):
        try:
            for item in lane:
                found.put((item, None))
                if over.is_set():
                    break
            found.put((_END, None))
        except BaseException as error:
            found.put((_END, error))

    threads = [threading.Thread(target=run, args=(lane,), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    with contextlib.ExitStack() as at_end:
        for thread in threads:
            at_end.callback(thread.join)
        at_end.callback(over.set)
        running = len(threads)
        while running:
            item, error = found.get()
            if error is not None:
                raise error
            if item is _END:
                running -= 1
            else:
                yield item
