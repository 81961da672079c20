"""What a run writes down as it goes: metrics.jsonl, one flat JSON object a line, and the same for TensorBoard."""

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
from tc_jepa.storage.files import replace_text

METRICS_FILE = "metrics.jsonl"


class Progress:
    """A run's metrics.jsonl, TensorBoard and progress bar, as a context manager; of several processes' the first's.

    Metrics of a step are fetched when the next one has been dispatched, so that the host never stalls the device.
    Opening at a step cuts off what an earlier run wrote beyond it: no step stands there twice.
    """

    def __init__(self, workdir: Path, start: int, steps: int, log_every: int, batch_size: int):
        writes = is_first()
        path = workdir / METRICS_FILE if writes else Path(os.devnull)
        if writes:
            cut_back(path, start)
        self._file = path.open("a")
        board = str(workdir / "tensorboard")
        self._board = tensorboardX.SummaryWriter(board, purge_step=start + 1, write_to_disk=writes)
        # A bar that is no terminal's is a log file: it gets a line now and then, not a flicker.
        every = 0.5 if sys.stderr.isatty() else 20
        self._bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", mininterval=every, dynamic_ncols=True, disable=not writes
        )
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
        """Takes a step's metrics, still being computed, and reports the step before."""
        self.flush()
        self._pending = step, metrics

    def flush(self, more: Callable[[], Mapping[str, float]] | None = None) -> None:
        """Reports the pending step, with what `more` returns in the same line.

        Raises FloatingPointError where the loss or the gradient is not finite.
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

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line and starts the clock of images_per_second anew."""
        self._file.write(json.dumps({"step": step} | dict(metrics)) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._clock = step, time.perf_counter()


def cut_back(path: Path, step: int) -> None:
    """Keeps the whole lines up to `step`. A last line without its end, left by a kill, goes too."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    replace_text(path, "".join(kept))
