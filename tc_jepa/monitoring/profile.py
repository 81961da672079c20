"""A profile of some training steps for xprof: the keys train.trace_start and train.trace_steps."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
from typing import Any

import jax


class StepTrace:
    """Records `steps` steps from step `first` on into `folder`; nothing for 0, or for a step that a run resumed after.

    A step is recorded with its wait for input. Every process writes a file of its own.
    """

    def __init__(self, folder: Path, first: int, steps: int):
        self._folder, self._first, self._last = folder, first, first + steps - 1
        self._recording = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Encloses step `number`, from 1."""
        if self._first and number == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._recording = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def finish(self, number: int, result: Any) -> None:
        """Ends the recording after its last step, when `result`, which that step computes, is there."""
        if self._recording and number >= self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends the recording if it has not ended, as when a run is stopped."""
        if self._recording:
            self._recording = False
            jax.profiler.stop_trace()
