"""Stopping a train loop on SIGTERM or Ctrl-C, after the same step in every process."""

import signal

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """A context manager in which SIGTERM and SIGINT only request a stop. The loop checks `requested` after each step.

    A second signal interrupts at once. Several processes must stop after the same step: JAX's preemption service, which
    handles SIGTERM from the time they join, agrees on that step. SIGINT interrupts them at once.

    Attributes:
      signal: the signal that requested the stop, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None

    def __enter__(self):
        handled = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._before = {number: signal.signal(number, self._request) for number in handled}
        return self

    def requested(self, step: int) -> bool:
        """Returns whether to stop after this step. Must be called after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if jax.process_count() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _request(self, number, frame):
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
