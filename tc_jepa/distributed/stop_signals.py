"""Stopping a train loop on SIGTERM, SIGHUP or Ctrl-C, after the same step in every process."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """A context manager in which SIGTERM, SIGHUP and SIGINT only request a stop. The loop checks `requested` after each
    step, and what waits on the way asks `pending`.

    A second signal interrupts at once, but for SIGHUP, which comes twice or with SIGTERM when a terminal closes. SIGHUP
    stays ignored where it is, as under nohup. Several processes must stop after the same step: JAX's preemption
    service, which handles SIGTERM from the time they join, agrees on that step. SIGHUP then becomes SIGTERM, and SIGINT
    interrupts them at once.

    Attributes:
      signal: the signal that requested the stop, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None

    def __enter__(self):
        alone = jax.process_count() == 1
        handled = {signal.SIGTERM: self._request, signal.SIGINT: self._request} if alone else {}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handled[signal.SIGHUP] = self._request if alone else lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        self._before = {number: signal.signal(number, handler) for number, handler in handled.items()}
        return self

    def pending(self) -> bool:
        """Returns whether a stop was requested. Of several processes none may act on it alone: it is False."""
        return self.signal is not None and jax.process_count() == 1

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
        if self.signal in (None, signal.SIGHUP):
            self.signal = signal.Signals(number)
        elif number != signal.SIGHUP:
            raise KeyboardInterrupt
