"""The log of a run: metrics.jsonl, one flat JSON object per line, TensorBoard with the same numbers, a progress bar."""

from collections.abc import Callable, Mapping
import json
import math
import os
from pathlib import Path
import sys
import time

import jax
import tensorboardX
import tqdm

from tc_jepa.distributed.processes import is_first
from tc_jepa.errors import UserError
from tc_jepa.storage.files import GrowingFile, replace_text

METRICS_FILE = "metrics.jsonl"


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
        logged: Callable[[Mapping[str, float]], None] = lambda row: None,
    ):
        """`logged` is called with every row of metrics.jsonl that is written."""
        writes = is_first()
        path = workdir / METRICS_FILE if writes else Path(os.devnull)
        if writes:
            cut_back(path, start)
        self._file = GrowingFile(path)
        board = str(workdir / "tensorboard")
        self._board = tensorboardX.SummaryWriter(board, purge_step=start + 1, write_to_disk=writes)
        # Without a terminal the bar goes to a log file, where each refresh is a line.
        every = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", mininterval=every, dynamic_ncols=True, disable=not writes
        )
        self._logged = logged
        self._log_every, self._steps, self._batch_size = log_every, steps, batch_size
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._clock = start, time.perf_counter()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._bar.close()
        self._file.close()
        self._board.close()

    def dispatched(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keeps a step's metrics, which may still be computed, and reports the step before."""
        self.flush()
        self._pending = step, metrics

    def flush(self, more: Callable[[], Mapping[str, float]] | None = None) -> None:
        """Reports the pending step; what `more` returns is logged in the same line.

        FloatingPointError where the loss or the gradient norm is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                raise FloatingPointError(f"{name} is {values[name]} at step {step}")
        self._bar.update(step - self._bar.n)
        since_step, since = self._clock
        rate = self._batch_size * (step - since_step) / (time.perf_counter() - since)
        self._bar.set_postfix({"loss": f"{values['loss']:.3f}", "images/s": f"{rate:.0f}"}, refresh=False)
        if more is not None or step % self._log_every == 0 or step == self._steps:
            self.write(step, values | {"images_per_second": rate} | (more() if more else {}))

    def sync(self) -> None:
        """Makes what was written safe from a kill, before the checkpoint with which a resume starts."""
        self._file.sync()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs one line and restarts the clock of images_per_second."""
        row = {"step": step} | dict(metrics)
        self._file.write(json.dumps(row) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._clock = step, time.perf_counter()
        self._logged(row)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics.jsonl. A last line without its end, left by a kill, is skipped.

    UserError, with the number of the line, for one that is not a JSON object with a "step".
    """
    return [row for _, row in _whole_lines(path)]


def logged_rows(workdir: Path, step: int) -> list[dict[str, float]]:
    """Returns the rows of a workdir's metrics.jsonl up to a step; none where there is no such file."""
    path = workdir / METRICS_FILE
    return [row for row in read_metrics(path) if row["step"] <= step] if path.exists() else []


def cut_back(path: Path, step: int) -> None:
    """Removes the lines after `step`, and a last line without its end. UserError as in read_metrics."""
    if path.exists():
        kept = [line for line, row in _whole_lines(path) if row["step"] <= step]
        replace_text(path, "".join(f"{line.decode()}\n" for line in kept))


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, float]]]:
    """The lines that end in a newline, without it, each with what it holds."""
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:  # bytes that are not UTF-8, too
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{path}, line {number} is damaged: not a JSON object with a step; delete that line")
        found.append((line, row))
    return found
