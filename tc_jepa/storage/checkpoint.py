"""Checkpoints of a training run: one directory per step, with all that a bit-exact resume or an evaluation needs.

The items of a checkpoint are `state` (step, trained parameters, optimizer), `target` (the method's extra state, such as
the moving average of the encoder; it can be read alone), `config` (the resolved configuration) and `fingerprints`.
Orbax restores flipped bytes without an error, so a fingerprint of every array is stored and compared. The position in
the data is not stored: it follows from the step.
"""

from collections.abc import Collection, Mapping
import json
from pathlib import Path
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import orbax.checkpoint as ocp

from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.state import TrainState
from tc_jepa.storage.faults import fault_of, writing
from tc_jepa.storage.files import as_path, in_bucket, replace_text
from tc_jepa.storage.quiet import silence_orbax
from tc_jepa.storage.reading import lfs_reason_of, read_object

CONFIG_FILE = "config.json"
SAVED_FILE = "saved.json"  # says that there was a checkpoint, so that lost ones are missed
# Orbax globs the unescaped path for the files to merge into a checkpoint (merge_ocdbt_per_process_files): with [ it
# finds none, with * and ? also those of other runs. TensorStore reads a backslash as a slash.
UNSAFE_CHARACTERS = "*?[\\"
STEP_METADATA = "_CHECKPOINT_METADATA"  # Orbax's own in the directory of a step, which can be restored without it
DAMAGED = "damaged"  # the directory in checkpoints/ of those that were set aside


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be restored, or whose arrays are not those that were saved."""


class Checkpoints:
    """The checkpoints of one workdir, of which the newest `keep` are kept, and those that are protected.

    Saving is asynchronous; `close` waits for it and raises its errors.
    """

    def __init__(self, workdir: Path, keep: int):
        check_directory(workdir)
        _check_metadata(workdir)
        self._workdir = as_path(workdir)
        self._protected: set[int] = set()
        newest = ocp.checkpoint_managers.LatestN(keep)
        policy = ocp.checkpoint_managers.AnyPreservationPolicy([newest, _Protected(self._protected)])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        silence_orbax()
        with writing(_directory(workdir)):
            self._manager = ocp.CheckpointManager(_directory(workdir), options=options)

    def latest(self) -> int | None:
        """Returns the newest step; None without a checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending."""
        return sorted(self._manager.all_steps())

    def protect(self, steps: Collection[int]) -> None:
        """Says which checkpoints are not deleted from the next save on, however old; those said before no longer."""
        self._protected.clear()
        self._protected.update(steps)

    def save(self, state: TrainState, config: Mapping[str, Any]) -> None:
        """Saves the state as step `state.step`. First waits for the previous save, and raises its errors.

        The first one after step 0 is waited for, and SAVED_FILE then says that it is there. Raises StorageFault where
        the machine cannot write; the unfinished directory that this leaves is deleted when the run is resumed.
        """
        self._wait()
        first = not any(self._manager.all_steps())
        items = _items(state)
        args = ocp.args.Composite(
            config=ocp.args.JsonSave(dict(config)),
            fingerprints=ocp.args.JsonSave({name: fingerprints(tree) for name, tree in items.items()}),
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
        )
        with writing(self._manager.directory):
            self._manager.save(int(state.step), args=args, force=True)
        if first and int(state.step):
            self._wait()
            if not jax.process_index():
                replace_text(self._workdir / SAVED_FILE, json.dumps({"first_step": int(state.step)}) + "\n")

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Returns the saved state, with the shardings of `abstract_state` (ShapeDtypeStructs with shardings).

        Raises UserError where another set of networks was trained: earlier versions had a text encoder in every run;
        DamagedCheckpoint where the checkpoint is damaged.
        """
        directory = self._manager.directory
        held, trained = set(_stored_params(directory / str(step))), set(abstract_state.params)
        if held != trained:
            raise UserError(
                f"the checkpoint of step {step} in {directory} holds {', '.join(sorted(held))} and this run trains "
                f"{', '.join(sorted(trained))}: another version wrote it; start again in another --workdir",
                about="workdir",
            )
        items = {"target": {}} | _restore(self._manager, step, _items(abstract_state))
        return TrainState(extra=items["target"], **items["state"])

    def reload(self) -> None:
        """Reads anew which steps there are."""
        self._manager.reload()

    def close(self) -> None:
        self._wait()
        with writing(self._manager.directory):
            self._manager.close()

    def _wait(self) -> None:
        with writing(self._manager.directory):
            self._manager.wait_until_finished()


class _Protected(ocp.checkpoint_managers.PreservationPolicy):
    """Preserves the steps in a set, as it is when a checkpoint is saved."""

    def __init__(self, steps: set[int]):
        self._steps = steps

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [checkpoint.step in self._steps for checkpoint in checkpoints]


def restore_encoder(workdir: Path, step: int | None, abstract_params: Params, *, averaged: bool) -> tuple[Params, int]:
    """Returns the parameters of a run's evaluation encoder at a step (None: the newest), and that step.

    With `averaged` the evaluation encoder is the run's extra state, a moving average of the encoder; else it is the
    trained encoder. Nothing else is read.
    """
    if not averaged:
        return _restore_trained(workdir, step, "encoder", abstract_params)
    step = chosen_step(workdir, step)
    with _reader(workdir) as manager:
        return _restore(manager, step, {"target": abstract_params})["target"], step


def restore_extra(workdir: Path, step: int, abstract: Params) -> Params:
    """Returns the extra state of a run's method at a step, as host arrays of the shapes in `abstract`; {} for {}."""
    if not abstract:
        return {}
    with _reader(workdir) as manager:
        return jax.device_get(_restore(manager, step, {"target": on_one_device(abstract)})["target"])


def on_one_device(abstract: Any) -> Any:
    """Returns the same shapes and dtypes with a sharding on the first device of this process."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)


def restore_trained(workdir: Path, step: int | None, network: str) -> Params:
    """Returns the trained parameters of one network, such as "encoder", as host arrays in the shapes stored.

    `step` None is the newest. Raises UserError, naming the networks there are, for any other network.
    """
    step = chosen_step(workdir, step)
    directory = _directory(workdir) / str(step)
    stored = _stored_params(directory)
    if network not in stored:
        raise UserError(f"{directory} holds no {network}, only {', '.join(stored)}; give another run", about=network)
    return jax.device_get(_restore_trained(workdir, step, network, on_one_device(stored[network]))[0])


def trained_networks(workdir: Path, step: int) -> set[str]:
    """Returns the names of the networks whose trained parameters a checkpoint holds."""
    return set(_stored_params(_directory(workdir) / str(step)))


def _stored_params(directory: Path) -> Mapping[str, Any]:
    """Returns the shapes and dtypes of the trained parameters in one step's directory, by name of network."""
    item = directory / "state"
    silence_orbax()
    try:
        return ocp.StandardCheckpointHandler().metadata(item).tree["params"]
    except Exception as error:  # Orbax raises all kinds, as in _restore
        _raise_if_machine(error, directory)
        fix, reason = _use_older(directory.parent, int(directory.name)), _reason(directory, error)
        raise DamagedCheckpoint(f"the metadata of {item} cannot be read ({reason}); {fix}") from error


def _restore_trained(workdir: Path, step: int | None, network: str, abstract_params: Params) -> tuple[Params, int]:
    step = chosen_step(workdir, step)
    with _reader(workdir) as manager:
        state = _restore(manager, step, {"state": {"params": {network: abstract_params}}}, partial=True)["state"]
        return state["params"][network], step


def chosen_step(workdir: Path, step: int | None) -> int:
    """Returns `step`, or the newest step for None. Raises UserError where there is no such checkpoint."""
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint; train there first, or give another workdir")
    if step is not None and step not in steps:
        raise UserError(
            f"{workdir} holds no checkpoint of step {step}; it has {', '.join(map(str, steps))}", about="step"
        )
    return steps[-1] if step is None else step


def _reader(workdir: Path) -> ocp.CheckpointManager:
    """Returns a manager that reads without waiting for the other processes, which may not read at all."""
    _check_metadata(workdir)
    silence_orbax()
    alone = jax.process_index()
    processes = ocp.options.MultiprocessingOptions(
        primary_host=alone, active_processes={alone}, barrier_sync_key_prefix=f"process_{alone}"
    )
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=processes)
    return ocp.CheckpointManager(_directory(workdir), options=options)


def saved_steps(workdir: Path) -> list[int]:
    """Returns the steps whose checkpoint Orbax completed, ascending.

    Where a directory cannot be renamed atomically, as on object stores, Orbax marks a complete one with a file in it.
    """
    return sorted(found.step for found in ocp.path.step.standard_name_format().find_all(_directory(workdir)))


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """Returns the configuration in a workdir as the run wrote it: that of an older version lacks newer keys.

    Raises UserError where there is none, or where it cannot be read.
    """
    path = as_path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{workdir} is not a workdir: it holds no {CONFIG_FILE}; give the --workdir of a training run")
    return ml_collections.ConfigDict(read_object(path, "restore it from the config item of a checkpoint"))


def _reason(directory: Path, error: Exception) -> str:
    """Returns why a checkpoint cannot be read: a Git LFS pointer, or Orbax's reason without TensorStore's settings."""
    files = [] if in_bucket(directory) else sorted(Path(directory).rglob("*"))
    if pointer := next(filter(lfs_reason_of, files), None):
        return f"{pointer}: {lfs_reason_of(pointer)}"
    line, *_ = [*str(error).splitlines(), ""]
    return re.split(r"\. See full | \[tensorstore_spec", line)[0] or type(error).__name__


def fingerprints(tree: Any) -> dict[str, int]:
    """Returns, by path of array, the sum of its elements' bits as uint32, modulo 2**32: equal under any sharding."""
    sums = jax.device_get(_bit_sums(tree))
    return {jax.tree_util.keystr(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _bit_sums(tree: Any) -> Any:
    return jax.tree.map(_bit_sum, tree)


def _bit_sum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)


def _items(state: TrainState) -> dict[str, Any]:
    """Returns the arrays of a checkpoint by item. An empty extra state has none: Orbax refuses empty items."""
    items = {"state": {"step": state.step, "params": state.params, "opt_state": state.opt_state}}
    return items | ({"target": state.extra} if state.extra else {})


def _restore(
    manager: ocp.CheckpointManager, step: int, abstract: Mapping[str, Any], partial: bool = False
) -> dict[str, Any]:
    """Returns items by name, checked against their fingerprints. Raises UserError for any failure.

    With `partial`, an item may hold more than is asked for.
    """
    if partial:
        arrays = {
            name: ocp.args.PyTreeRestore(
                tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True
            )
            for name, tree in abstract.items()
        }
    else:
        arrays = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    where, fix = f"the checkpoint of step {step} in {manager.directory}", _use_older(manager.directory, step)
    try:
        items = manager.restore(step, args=ocp.args.Composite(fingerprints=ocp.args.JsonRestore(), **arrays))
    except Exception as error:  # Orbax raises bare Exception for damaged files, and no run may start over
        _raise_if_machine(error, manager.directory)
        reason = _reason(manager.directory / str(step), error)
        raise DamagedCheckpoint(f"{where} cannot be restored ({reason}); {fix}") from error
    written = items["fingerprints"]
    for name in abstract:
        found, stored = fingerprints(items[name]), written.get(name) if isinstance(written, dict) else None
        if not isinstance(stored, dict):
            raise DamagedCheckpoint(f"{where} is damaged: fingerprints has none of {name}; {fix}")
        damaged = sorted(key for key in found if found[key] != stored.get(key))
        if damaged:
            raise DamagedCheckpoint(f"{where} is damaged in {name}{damaged[0]}; {fix}")
    return {name: items[name] for name in abstract}


def _raise_if_machine(error: Exception, directory: Path) -> None:
    """Raises where a checkpoint may be whole: StorageFault for a disk or mount that fails, `error` without memory."""
    if fault := fault_of(error, directory, "read"):
        raise fault from error
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        raise error


def _use_older(directory: Path, step: int) -> str:
    """What to do about a damaged step in a directory of checkpoints."""
    older = [saved for saved in saved_steps(directory.parent) if saved < step]
    return f"use step {older[-1]}, as a resume with train.on_damage=older" if older else "there is no older step"


def unreadable_metadata(workdir: Path) -> dict[int, Path]:
    """Returns, by step, the files of metadata for which Orbax could not even list the steps."""
    found = {}
    for step in saved_steps(workdir):
        path = _directory(workdir) / str(step) / STEP_METADATA
        try:
            _ = read_object(path, "") if path.exists() else {}
        except UserError:
            found[step] = path
    return found


def _check_metadata(workdir: Path) -> None:
    for path in unreadable_metadata(workdir).values():
        raise DamagedCheckpoint(f"{path} is not a JSON object; delete that file, which a restore does not need")


def set_aside(workdir: Path, steps: Collection[int]) -> None:
    """Moves the checkpoints of these steps to checkpoints/damaged/STEP. Only one process may call it."""
    directory = _directory(workdir)
    if in_bucket(directory):
        raise UserError(f"{directory}: in a bucket a step cannot be moved as a whole; delete step {max(steps)} there")
    (directory / DAMAGED).mkdir(exist_ok=True)
    for step in steps:
        target, count = directory / DAMAGED / str(step), 1
        while target.exists():
            target, count = directory / DAMAGED / f"{step}.{count}", count + 1
        (directory / str(step)).rename(target)


def check_directory(workdir: Path) -> None:
    """Raises UserError for a workdir from which saved checkpoints could not be restored.

    These have one of UNSAFE_CHARACTERS anywhere in their path, with symbolic links resolved.
    """
    directory = _directory(workdir)
    found = [character for character in UNSAFE_CHARACTERS if character in str(directory)]
    if found:
        raise UserError(
            f"checkpoints in {directory} could not be restored, because of the {' and '.join(found)} in that path; "
            f"give a --workdir without {' '.join(UNSAFE_CHARACTERS)}",
            about="workdir",
        )


def _directory(workdir: Path) -> Path:
    path = as_path(workdir)
    return (path if in_bucket(path) else path.resolve()) / "checkpoints"
