"""The log of a run: metrics.jsonl, one flat JSON object per line, TensorBoard with the same numbers, a progress bar."""

from collections.abc import Callable, Mapping
import contextlib
import json
import math
import os
from pathlib import Path
import sys
import time

from absl import logging
import jax
import tqdm

from tc_jepa.distributed.processes import is_first
from tc_jepa.experiment.non_finite import NonFinite, SKIPPED, WATCHED
from tc_jepa.monitoring.board import Board
from tc_jepa.storage.files import GrowingFile
from tc_jepa.storage.metrics_file import cut_back, last_logged_step, METRICS_FILE, widest_gap


class Progress:
    """Writes a run's metrics.jsonl, TensorBoard and progress bar; a context manager.

    Metrics of a step are fetched after the next one has been dispatched, so that the host never stalls the device.
    Opening removes what an earlier process logged after step `start`, so that no step is logged twice. With several
    processes, only the first one writes.
    """

    def __init__(
        self,
        workdir: Path,
        start: int,
        steps: int,
        log_every: int,
        batch_size: int,
        skip: int = 0,
        logged: Callable[[Mapping[str, float]], None] = lambda row: None,
    ):
        """`skip` is how many steps may be skipped because their loss is not finite: see experiment.non_finite.

        `logged` is called with every row of metrics.jsonl that is written.
        """
        writes = is_first()
        first = start + 1 if start else 0  # step to log; the state before training is logged once
        path = workdir / METRICS_FILE if writes else Path(os.devnull)
        if writes:
            cut_back(path, first - 1)
            last = last_logged_step(workdir)
            missing = first - 1 - last
            # The log shows how often lines were written before train.log_every was lowered.
            if missing >= log_every and missing >= widest_gap(workdir):
                logging.warning("%s has nothing of the steps from %d to %d: lines were lost", path, last + 1, start)
        self._file = GrowingFile(path)
        self._board = Board(workdir / "tensorboard", first) if writes else None
        # Without a terminal the bar goes to a log file, where each refresh is a line.
        every = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", mininterval=every, dynamic_ncols=True, disable=not writes
        )
        self._logged = logged
        self.last_finite = start  # the last step whose loss and gradient were finite
        self._skip = skip
        self._log_every, self._steps, self._batch_size = log_every, steps, batch_size
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._clock = start, time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.ExitStack() as stack:  # each, whatever the others raise
            stack.callback(self._bar.close)
            stack.callback(self._file.close)
            if self._board is not None:
                stack.callback(self._board.close)

    def dispatched(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keeps a step's metrics, which may still be computed, and reports the step before."""
        self.flush()
        self._pending = step, metrics

    def flush(self, more: Callable[[], Mapping[str, float]] | None = None) -> None:
        """Reports the pending step; what `more` returns is logged in the same line.

        NonFinite where the loss or the gradient norm is not finite. A step that was skipped for that is logged with
        the numbers that are finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        wrong = [f"{name} is {values[name]}" for name in WATCHED if not math.isfinite(values[name])]
        if not wrong:
            self.last_finite = step
        elif not self._skip or values[SKIPPED] > self._skip:
            raise NonFinite(wrong[0], step, self.last_finite)
        else:
            values = {name: value for name, value in values.items() if math.isfinite(value)}
            if is_first():
                logging.warning("step %d is skipped: %s (%d of %d)", step, wrong[0], values[SKIPPED], self._skip)
        self._bar.update(step - self._bar.n)
        since_step, since = self._clock
        rate = self._batch_size * (step - since_step) / (time.perf_counter() - since)
        self._bar.set_postfix({"loss": f"{values.get('loss', math.nan):.3f}", "images/s": f"{rate:.0f}"}, refresh=False)
        if wrong or more is not None or step % self._log_every == 0 or step == self._steps:
            self.write(step, values | {"images_per_second": rate} | (more() if more else {}))

    def sync(self) -> None:
        """Makes what was written safe from a kill, before the checkpoint with which a resume starts."""
        self._file.sync()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs one line and restarts the clock of images_per_second."""
        row = {"step": step} | dict(metrics)
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            self._board.write(step, metrics)
        self._clock = step, time.perf_counter()
        self._logged(row)
