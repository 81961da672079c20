"""Losses and gradients that are not finite: steps that are skipped, and what a run says and records when it stops.

How many steps were skipped follows from the train state: the number of the step minus that of the optimizer's updates.
So a resumed run needs no other record of it. A run that stops writes WORKDIR/stopped.json, by which the same command is
refused: it would meet the same batch with the same parameters.
"""

from collections.abc import Callable, Iterator
import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tc_jepa.distributed.processes import is_first
from tc_jepa.errors import UserError
from tc_jepa.methods.method import Metrics
from tc_jepa.state import TrainState
from tc_jepa.storage.checkpoint import Checkpoints
from tc_jepa.storage.files import replace_text
from tc_jepa.storage.finite import non_finite
from tc_jepa.storage.reading import read_object

STOPPED_FILE = "stopped.json"
WATCHED = ("loss", "gradient_norm")  # metrics of a step
SKIPPED = "skipped_steps"  # so far in the run; logged where steps may be skipped

Step = Callable[..., tuple[TrainState, Metrics]]


class NonFinite(FloatingPointError):
    """A number of `step` is not finite, or a parameter after it. `last_finite` is the last step with a finite loss."""

    def __init__(self, what: str, step: int, last_finite: int):
        super().__init__(f"{what} at step {step}")
        self.step, self.last_finite = step, last_finite


def skipping(step: Step) -> Step:
    """Returns train_step such that a step whose loss or gradient is not finite changes the number of the step alone.

    Parameters, the method's extra state and that of the optimizer are then those from before. The optimizer's schedules
    count updates, so they lag behind the number of the step; the logged ones are those that were used.
    """

    def step_or_skip(state: TrainState, batch: Any, frozen: Any, **settings: Any) -> tuple[TrainState, Metrics]:
        after, metrics = step(state, batch, frozen, **settings)
        finite = jnp.all(jnp.stack([jnp.isfinite(metrics[name]) for name in WATCHED]))
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state).replace(step=after.step)
        update = _updates(state) + 1
        return kept, metrics | {
            "learning_rate": settings["schedules"].learning_rate(update),
            "weight_decay": settings["schedules"].weight_decay(update),
            SKIPPED: (kept.step - _updates(kept)).astype(jnp.float32),
        }

    return step_or_skip


def _updates(state: TrainState) -> jax.Array:
    """The number of updates that the optimizer has made; all its counters agree."""
    return optax.tree.get_all_with_path(state.opt_state, "count")[0][1]


def check_parameters(state: TrainState, last_finite: int) -> None:
    """Raises NonFinite where a value of the state is not finite, so that none is ever saved."""
    found = non_finite({"params": state.params, "extra": state.extra, "opt_state": state.opt_state})
    if found:
        raise NonFinite(f"{found[0]} is not finite after the update", int(state.step), last_finite)


@contextlib.contextmanager
def explained(workdir: Path, checkpoints: Checkpoints, allowed: int) -> Iterator[None]:
    """Turns NonFinite into a UserError that says what can still be used, and records the stop.

    `allowed` is how many steps may be skipped.
    """
    try:
        yield
    except NonFinite as error:
        good = max((step for step in checkpoints.steps() if step < error.last_finite), default=None)
        if is_first():
            replace_text(workdir / STOPPED_FILE, json.dumps({"step": error.step, "reason": str(error)}) + "\n")
        after = f", after {allowed} skipped step(s)" if allowed else ""
        raise UserError(
            f"{error}{after}; last good checkpoint, from which the next loss was finite: "
            f"{'there is none' if good is None else f'step {good}'}. {_advice(allowed)}",
            about="train.skip_non_finite",
        ) from error


def check_not_stopped(workdir: Path, newest: int, allowed: int) -> None:
    """Raises UserError where the run in a workdir stopped at a step after `newest`, the saved one.

    To be called where the same command is repeated. `allowed` is how many steps it may skip.
    """
    path, fix = workdir / STOPPED_FILE, "delete it to try again"
    stopped = read_object(path, fix) if path.exists() else {"step": 0}
    if type(stopped.get("step")) is not int:
        raise UserError(f"{path} names no step; {fix}")
    if newest < stopped["step"]:
        raise UserError(
            f"{workdir} stopped before: {stopped.get('reason')}. {_advice(allowed)}. To try the same again, on other "
            f"devices say, delete {path}",
            about="train.skip_non_finite",
        )


def forget_stop(workdir: Path) -> None:
    """Removes the record of a stop, from which the run goes on in another way."""
    (workdir / STOPPED_FILE).unlink(missing_ok=True)


def _advice(allowed: int) -> str:
    return (
        f"A resume would meet the same batch: skip such steps with train.skip_non_finite={allowed + 1} or more, or "
        "start a new workdir with a lower optimizer.peak_learning_rate or model.dtype=float32"
    )
