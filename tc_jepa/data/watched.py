"""Grain's worker processes, watched: those that die, stop or hang are named, and none is waited for in vain.

Grain itself waits without end for a worker that is stopped or hangs, and a worker outlives a trainer that is killed.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import functools
import multiprocessing
import os
from pathlib import Path
import signal
import threading
import time
from typing import Any

from absl import flags, logging
import grain

from tc_jepa.data.shared_memory import name_after, remove, Segments
from tc_jepa.errors import UserError

QUIET = 60  # seconds without a batch until a line says so
TICK = 0.25  # seconds between two looks at signals and workers
GRACE = 5  # seconds in which workers may end by themselves
# Only the trainer gets these; it then ends its workers. A terminal or a scheduler sends them to all processes.
KEPT_FROM_WORKERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NAME = "data worker"  # of the process, with a number from 1, in ps and top
STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a file system or disk that does not answer",
    "T": "stopped; kill -CONT lets it go on",
    "t": "stopped by a debugger",
    "Z": "dead",
}
FIX = "lower data.workers or train.batch_size, or give the job more memory"
CAUSES = {
    signal.SIGKILL: f"most likely by the system, which ran out of memory: {FIX}",
    signal.SIGBUS: "most likely because /dev/shm is full: make it larger (docker run --shm-size)",
}


class WatchedBatches(Iterator[Any]):
    """Batches that `workers` processes prepare, in the order of `batches`.

    Raises UserError where a worker died. While it waits it asks `cancelled`, and ends if that is true. Close it when
    done: it ends the workers.
    """

    def __init__(self, batches: grain.IterDataset, workers: int, cancelled: Callable[[], bool]):
        # Grain reads an absl flag and fails where none were parsed, as in notebooks (google/grain issue 1355).
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        self._workers, self._cancelled, self._received = workers, cancelled, 0
        self._others = set(multiprocessing.active_children())
        self._processes: set[multiprocessing.process.BaseProcess] = set()
        self._pids: dict[int, int] = {}  # by number of the worker
        self._segments = Segments()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
        dataset = batches.mp_prefetch(options, functools.partial(start_worker, self._segments.prefix))
        # Processes inherit the blocked signals of the thread that starts them.
        self._thread = futures.ThreadPoolExecutor(1, "batches", signal.pthread_sigmask, self._blocked())
        self._batches = self._thread.submit(iter, dataset).result()
        self._asked: futures.Future | None = None
        self._closed = self._failed = False

    @staticmethod
    def _blocked() -> tuple[int, tuple[signal.Signals, ...]]:
        return signal.SIG_BLOCK, KEPT_FROM_WORKERS

    def __next__(self) -> Any:
        try:
            return self._next()
        except StopIteration:
            raise
        except BaseException:
            self._failed = True
            raise

    def _next(self) -> Any:
        self._asked, asked_at, said = self._thread.submit(next, self._batches), time.monotonic(), False
        while not futures.wait((self._asked,), TICK).done:
            self._look()
            if self._cancelled():
                self._failed = True
                raise StopIteration
            if dead := self._dead():
                # One that ended by itself has passed on its error, which is on its way.
                if dead.exitcode == 0 and futures.wait((self._asked,), GRACE).done:
                    break
                raise UserError(self._died(dead), about="data.workers")
            if not said and time.monotonic() - asked_at >= QUIET:
                said = True
                logging.warning("no batch for %d s: waiting for %s", QUIET, self._awaited())
        try:
            batch = self._asked.result()
        except MemoryError as error:
            raise UserError(f"a {NAME} ran out of memory: {FIX}", about="data.workers") from error
        except RuntimeError as error:  # Grain's, for a dead worker, among others
            self._look()
            if dead := self._dead():
                raise UserError(self._died(dead), about="data.workers") from error
            raise
        self._received += 1
        if self._received <= 2 * self._workers:  # until each is known
            self._look()
        return batch

    def close(self) -> None:
        """Ends the workers: those that still do not after GRACE, or that nobody waits for, by SIGKILL."""
        if self._closed:
            return
        self._closed = True
        self._look()
        if self._asked is not None and not self._asked.done():
            self._kill()
            futures.wait((self._asked,), GRACE)
        closing = self._thread.submit(self._batches.close)
        if not futures.wait((closing,), GRACE).done:
            self._kill()
            futures.wait((closing,), GRACE)
        self._thread.shutdown(wait=False)
        self._segments.close(in_use=self._failed)

    def _look(self) -> None:
        """Finds the processes that Grain has started, and their numbers once their names show them."""
        self._processes |= set(multiprocessing.active_children()) - self._others
        for process in self._processes:
            name = _proc(process.pid, "comm").strip()
            if name.startswith(NAME):
                self._pids[int(name.removeprefix(NAME))] = process.pid

    def _dead(self) -> multiprocessing.process.BaseProcess | None:
        """A worker that has ended, if any; first one that did not end by itself."""
        ended = [process for process in self._processes if process.exitcode is not None]
        return max(ended, key=lambda process: process.exitcode != 0, default=None)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    def _awaited(self) -> str:
        """The worker whose turn it is: Grain takes a batch from each in turn."""
        number = self._received % self._workers + 1
        if number not in self._pids:
            pids = ", ".join(str(process.pid) for process in self._processes)
            return f"{NAME} {number} of {self._workers}, which is starting (one of pid {pids or 'none yet'})"
        pid = self._pids[number]
        return f"{NAME} {number} of {self._workers} (pid {pid}, {_state(pid)})"

    def _died(self, process: multiprocessing.process.BaseProcess) -> str:
        number = next((f" {number}" for number, pid in self._pids.items() if pid == process.pid), "")
        who = f"{NAME}{number} (pid {process.pid})"
        if process.exitcode >= 0:
            return f"{who} ended with exit code {process.exitcode}; lines above may say why"
        name = signal.Signals(-process.exitcode)
        return f"{who} was ended by {name.name}, {CAUSES.get(name, 'a crash in a library or a signal from outside')}"


def start_worker(prefix: str, index: int, count: int) -> None:
    """Prepares a worker process: it ends with its parent, has a name, and names its shared memory after `prefix`."""
    name_after(prefix)
    threading.Thread(target=_end_with_parent, args=(prefix,), daemon=True).start()
    comm = Path("/proc/self/comm")
    if comm.exists():
        comm.write_text(f"{NAME} {index + 1}")


def _end_with_parent(prefix: str) -> None:
    # Linux's PR_SET_PDEATHSIG would not do: it acts when the thread ends that started the process.
    multiprocessing.parent_process().join()
    remove(prefix)
    os._exit(1)


def _state(pid: int) -> str:
    fields = _proc(pid, "stat").rpartition(")")[2].split()
    return STATES.get(fields[0], fields[0]) if fields else "state unknown"


def _proc(pid: int, name: str) -> str:
    """A file about a process; empty where there is none, as on macOS."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
