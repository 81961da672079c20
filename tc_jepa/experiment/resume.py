"""What a workdir holds when a training starts there: which of it is used, and what is refused or set aside."""

from pathlib import Path

from absl import logging
import jax

from tc_jepa.distributed.processes import any_process, is_first, wait_for_all
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import Experiment
from tc_jepa.experiment.non_finite import STOPPED_FILE
from tc_jepa.models.layers import Params
from tc_jepa.state import TrainState
from tc_jepa.storage.checkpoint import (
    Checkpoints,
    CONFIG_FILE,
    DamagedCheckpoint,
    SAVED_FILE,
    saved_steps,
    set_aside,
    unreadable_metadata,
)
from tc_jepa.storage.files import in_bucket, TRAINING_LOCK
from tc_jepa.storage.metrics_file import last_logged_step, METRICS_FILE
from tc_jepa.storage.run_data import DATA_FILE

ON_DAMAGE = ("stop", "older")  # values of train.on_damage
FILES = (CONFIG_FILE, DATA_FILE, METRICS_FILE, SAVED_FILE, STOPPED_FILE, TRAINING_LOCK)
FOLDERS = ("checkpoints", "tensorboard")


def check_kinds(workdir: Path) -> None:
    """Raises UserError for a file of a workdir that is a folder, and the other way round."""
    if in_bucket(workdir):
        return
    steps = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    for path in (*(workdir / name for name in FOLDERS), *steps):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, where a folder is expected; move it away", about="workdir")
    for path in (workdir / name for name in FILES):
        if path.is_dir():
            raise UserError(f"{path} is a folder, where a file is expected; move it away", about="workdir")


def check_not_lost(workdir: Path, first: int) -> None:
    """Raises UserError where a workdir without checkpoints once had one.

    SAVED_FILE says so, or, of runs without that file, a log beyond `first`, the step of the first checkpoint.
    """
    if (workdir / SAVED_FILE).exists():
        raise UserError(
            f"{workdir} holds no checkpoint, and {SAVED_FILE} says that it did: checkpoints were lost; restore them, "
            "or give another --workdir",
            about="workdir",
        )
    last = last_logged_step(workdir)
    if last > first:
        raise UserError(
            f"{workdir} holds no checkpoint, and {METRICS_FILE} goes to step {last}: checkpoints were lost; restore "
            f"them, or delete {workdir / METRICS_FILE} to start over",
            about="workdir",
        )


def open_checkpoints(workdir: Path, keep: int, on_damage: str) -> Checkpoints:
    """Opens the checkpoints of a workdir. Raises DamagedCheckpoint where Orbax could not list the steps."""
    damaged = sorted(unreadable_metadata(workdir))
    usable = on_damage == "older" and len(damaged) < len(saved_steps(workdir))
    if usable and any_process(bool(damaged)):
        _move(workdir, damaged)
    return Checkpoints(workdir, keep)


def restore_newest(workdir: Path, checkpoints: Checkpoints, abstract_state: TrainState, on_damage: str) -> TrainState:
    """Restores the newest step; with "older" the newest that is not damaged, and newer ones are then set aside.

    Raises DamagedCheckpoint, and leaves all steps where they are, where none can be used.
    """
    steps, first_error = checkpoints.steps()[::-1], None
    for number, step in enumerate(steps):
        state, error = None, None
        try:
            state = checkpoints.restore(step, abstract_state)
        except DamagedCheckpoint as damage:
            error = damage
        if error is not None and on_damage != "older":
            raise error
        if on_damage != "older" or not any_process(error is not None):
            if number:
                logging.warning("%s", first_error)
                _move(workdir, steps[:number])
                checkpoints.reload()
            return state
        first_error = first_error or error or DamagedCheckpoint(f"another process cannot restore step {step}")
    raise DamagedCheckpoint(f"{first_error}; no step of {', '.join(map(str, steps))} can be restored") from first_error


def _move(workdir: Path, steps: list[int]) -> None:
    if is_first():
        set_aside(workdir, steps)
        print(f"damaged: step {', '.join(map(str, steps))}, now in {workdir / 'checkpoints' / 'damaged'}", flush=True)
    wait_for_all("damaged steps")


def print_start(experiment: Experiment, workdir: Path, start: int, params: Params) -> None:
    """Says what is trained, from which step on, and on what."""
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(network)) for name, network in params.items()}
    sizes = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items())
    print(
        f"{'resuming' if start else 'training'} in {workdir} from step {start} of {experiment.config.train.steps} on "
        f"{experiment.mesh.size} {jax.devices()[0].platform} device(s): {sizes} parameters; "
        f"{len(experiment.source)} images",
        flush=True,
    )
