"""How a training leaves before its last step: what is saved, and what is said of it."""

from collections.abc import Callable, Iterator
import contextlib
import multiprocessing
import os
import signal
import sys

import jax

from tc_jepa.errors import UserError
from tc_jepa.storage.checkpoint import Checkpoints


@contextlib.contextmanager
def saved_first(save: Callable[[int], None], checkpoints: Checkpoints, step: int) -> Iterator[None]:
    """Saves the state after `step` before a UserError of the block leaves, and adds to it what is saved.

    The block reads data, which has no part in that state. One of several processes cannot save alone.
    """
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            save(step)
        newest = checkpoints.latest()
        note = f"step {newest} is saved, from which the same command resumes" if newest else "no step is saved"
        raise UserError(f"{error}. {note[0].upper()}{note[1:]}", about=error.about) from error


def leave_stopped(by: signal.Signals, step: int) -> None:
    """Says after which step a signal stopped the training, and exits with 128 + its number.

    A hangup may have taken the terminal away. Data workers that do not end, whatever they get, are not waited for.
    """
    after = f"after step {step}, which is saved" if step else "before the first step was done"
    with contextlib.suppress(OSError):
        print(f"stopped by {by.name} {after}; the same command resumes", flush=True)
    if multiprocessing.active_children():
        os._exit(128 + by)
    sys.exit(128 + by)
