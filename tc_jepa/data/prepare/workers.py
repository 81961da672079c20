"""One function over many items, in this process or in several, with one progress bar and a quick end."""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import multiprocessing
import os
import signal
import threading
from typing import TypeVar

from tc_jepa.errors import UserError

POLL = 0.2  # seconds between two looks at the workers' progress

Advance = Callable[[int], None]
Item, Result = TypeVar("Item"), TypeVar("Result")


def run(
    function: Callable[[Item, Advance], Result], items: Sequence[Item], workers: int, advance: Advance
) -> Iterator[tuple[Item, Result]]:
    """Pairs of item and function(item, advance), as they get ready; `workers` 0, or a single item: in this process.

    The first error is raised as it is, and ends the others' work at their next call of `advance`, as does closing the
    iterator. Function, items and results pickle.
    """
    workers = min(workers, len(items))
    if workers < 2:
        for item in items:
            yield item, function(item, advance)
    else:
        yield from _run_in_workers(function, items, workers, advance)


def _run_in_workers(function, items, workers, advance):
    # Not fork: TFDS and OpenCV have threads by now.
    context = multiprocessing.get_context("spawn")
    told, stop = context.Value("q", 0), context.Event()
    executor = futures.ProcessPoolExecutor(workers, context, _begin, (function, told, stop))
    shown = 0
    try:
        waiting = {executor.submit(_work, item): item for item in items}
        while waiting:
            ready, _ = futures.wait(waiting, POLL, futures.FIRST_COMPLETED)
            shown, before = told.value, shown
            advance(shown - before)
            for future in ready:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; try again with fewer --workers"
        ) from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


# In a worker


class _Stopped(Exception):
    """The main process wants no more."""


_work_on: Callable = None


def _begin(function, told, stop) -> None:
    """Interrupts are the main process's business; its end, however sudden, is this process's end too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def advance(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        with told.get_lock():
            told.value += count

    global _work_on
    _work_on = lambda item: function(item, advance)  # noqa: E731


def _work(item):
    return _work_on(item)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
