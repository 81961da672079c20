"""Applying a function to many items, in this process or in several, with one progress bar and a prompt stop."""

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
    """Yields (item, function(item, advance)) (all pickle) as they finish; in this process with `workers` 0 or one item.

    The first error is raised unchanged; it, or closing the iterator, stops the others at their next call of `advance`.
    """
    workers = min(workers, len(items))
    if workers < 2:
        for item in items:
            yield item, function(item, advance)
        return
    # Not fork: TFDS and OpenCV have started threads.
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    executor = futures.ProcessPoolExecutor(workers, context, _start_worker, (count, stop))
    shown = 0
    try:
        waiting = {executor.submit(function, item, _advance): item for item in items}
        while waiting:
            ready, _ = futures.wait(waiting, POLL, futures.FIRST_COMPLETED)
            shown, before = count.value, shown
            advance(shown - before)
            for future in ready:
                yield waiting.pop(future), future.result()
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed, for lack of memory? Try again with fewer --workers") from error
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


# In a worker

_count = _stop = None  # shared with the main process


def _start_worker(count, stop) -> None:
    """Ignores interrupts, which the main process handles. Ends this process when the main process ends."""
    global _count, _stop
    _count, _stop = count, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _advance(size: int) -> None:
    if _stop.is_set():
        raise futures.CancelledError
    with _count.get_lock():
        _count.value += size


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
