"""Checkpoints of a run: everything that a bit-exact resume or a later evaluation needs, in one directory a step.

Items: `state` (step, trained parameters, optimizer), `target` (the method's extra state, such as the average of the
encoder; readable alone), `config` (resolved) and `fingerprints`. Orbax restores flipped bytes without an error, so each
array's fingerprint is stored and compared. The position in the data needs no item: it is the step.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import orbax.checkpoint as ocp

from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.state import TrainState

CONFIG_FILE = "config.json"
# Orbax globs the unescaped path for the files to merge into a checkpoint (merge_ocdbt_per_process_files): with [ it
# finds none, with * and ? those of a neighbouring run too. TensorStore reads a backslash as a slash.
UNSAFE_CHARACTERS = "*?[\\"


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous; `close` waits for it and surfaces its errors."""

    def __init__(self, workdir: Path, keep: int):
        check_directory(workdir)
        policy = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(_directory(workdir), options=options)

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, config: Mapping[str, Any]) -> None:
        """Stores the state as step `state.step`. Waits for the save before it, and raises if that one failed."""
        self._manager.wait_until_finished()
        items = _items(state)
        args = ocp.args.Composite(
            config=ocp.args.JsonSave(dict(config)),
            fingerprints=ocp.args.JsonSave({name: fingerprints(tree) for name, tree in items.items()}),
            **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
        )
        self._manager.save(int(state.step), args=args, force=True)

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """The state as saved, laid out as `abstract_state` (ShapeDtypeStructs with shardings) says.

        UserError where another set of networks was trained: earlier versions had a text encoder in every run.
        """
        directory = Path(self._manager.directory)
        held, trained = set(_stored_params(directory / str(step))), set(abstract_state.params)
        if held != trained:
            raise UserError(
                f"the checkpoint of step {step} in {directory} holds {', '.join(sorted(held))} and this run trains "
                f"{', '.join(sorted(trained))}: another version wrote it; start anew in another --workdir"
            )
        items = {"target": {}} | _restore(self._manager, step, _items(abstract_state))
        return TrainState(extra=items["target"], **items["state"])

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


def restore_encoder(workdir: Path, step: int | None, abstract_params: Params, *, averaged: bool) -> tuple[Params, int]:
    """Returns the parameters of a run's evaluation encoder at a step (None: the newest), and that step.

    `averaged`: the run's extra state is an average of the encoder, which is evaluated; else the trained encoder is.
    Reads nothing else.
    """
    if not averaged:
        return _restore_trained(workdir, step, "encoder", abstract_params)
    step = chosen_step(workdir, step)
    with _reading(workdir) as manager:
        return _restore(manager, step, {"target": abstract_params})["target"], step


def restore_extra(workdir: Path, step: int, abstract: Params) -> Params:
    """Returns the extra state of a run's method at a step, as host arrays of the given shapes; {} where it has none."""
    if not abstract:
        return {}
    with _reading(workdir) as manager:
        return jax.device_get(_restore(manager, step, {"target": on_one_device(abstract)})["target"])


def on_one_device(abstract: Any) -> Any:
    """Shapes and dtypes, to be restored on the first device of this process."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)


def restore_trained(workdir: Path, step: int | None, network: str) -> Params:
    """The trained parameters of one network (encoder, predictor or text) in the shapes that they were stored in.

    As host arrays. Without a description of the network: for readers that have none.
    """
    step = chosen_step(workdir, step)
    directory = _directory(workdir) / str(step)
    stored = _stored_params(directory)
    if network not in stored:
        raise UserError(f"{directory} holds no {network}, only {', '.join(stored)}; give another run")
    return jax.device_get(_restore_trained(workdir, step, network, on_one_device(stored[network]))[0])


def _stored_params(directory: Path) -> Mapping[str, Any]:
    """Shapes and dtypes of the trained parameters in one step's checkpoint, by network."""
    item = directory / "state"
    try:
        return ocp.StandardCheckpointHandler().metadata(item).tree["params"]
    except Exception as error:  # as in _restore
        raise UserError(f"{item} does not say what it holds ({error}); restore an older step") from error


def _restore_trained(workdir: Path, step: int | None, network: str, abstract_params: Params) -> tuple[Params, int]:
    step = chosen_step(workdir, step)
    with _reading(workdir) as manager:
        state = _restore(manager, step, {"state": {"params": {network: abstract_params}}}, partial=True)["state"]
        return state["params"][network], step


def chosen_step(workdir: Path, step: int | None) -> int:
    """The step itself, or the newest for None. UserError where there is no such checkpoint."""
    steps = saved_steps(workdir)
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint; train there first, or name another workdir")
    if step is not None and step not in steps:
        raise UserError(f"{workdir} holds no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def _reading(workdir: Path) -> ocp.CheckpointManager:
    """For this process alone: the others may be elsewhere, or reading too."""
    alone = jax.process_index()
    processes = ocp.options.MultiprocessingOptions(
        primary_host=alone, active_processes={alone}, barrier_sync_key_prefix=f"process_{alone}"
    )
    options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=processes)
    return ocp.CheckpointManager(_directory(workdir), options=options)


def saved_steps(workdir: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    directory = _directory(workdir)
    return (
        sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()) if directory.is_dir() else []
    )


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The resolved configuration that a workdir was trained with."""
    path = Path(workdir) / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{workdir} is no workdir: it holds no {CONFIG_FILE}; give the --workdir of a training run")
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore it from a checkpoint's config item") from error


def fingerprints(tree: Any) -> dict[str, int]:
    """For every array, the sum of its bits as 32-bit words, modulo 2**32: the same under any sharding."""
    sums = jax.device_get(_bit_sums(tree))
    return {jax.tree_util.keystr(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _bit_sums(tree: Any) -> Any:
    return jax.tree.map(_bit_sum, tree)


def _bit_sum(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)


def _items(state: TrainState) -> dict[str, Any]:
    """What is stored apart. An empty extra state has no item: Orbax refuses empty ones."""
    items = {"state": {"step": state.step, "params": state.params, "opt_state": state.opt_state}}
    return items | ({"target": state.extra} if state.extra else {})


def _restore(
    manager: ocp.CheckpointManager, step: int, abstract: Mapping[str, Any], partial: bool = False
) -> dict[str, Any]:
    """Items by name, checked against their fingerprints. Any failure is a UserError: nothing starts over silently.

    `partial`: an item may hold more than is asked for.
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
    where = f"the checkpoint of step {step} in {manager.directory}"
    try:
        items = manager.restore(step, args=ocp.args.Composite(fingerprints=ocp.args.JsonRestore(), **arrays))
    except Exception as error:  # Orbax raises bare Exception for damaged files; whatever it is, the run must not go on.
        reason = next(iter(str(error).split("\n")), "") or type(error).__name__
        raise UserError(
            f"{where} cannot be restored ({reason}); delete that directory to fall back on an older one"
        ) from error
    for name in abstract:
        found, stored = fingerprints(items[name]), items["fingerprints"][name]
        damaged = sorted(key for key in found if found[key] != stored[key])
        if damaged:
            raise UserError(
                f"{where} is damaged in {name}{damaged[0]}; delete that directory to fall back on an older one"
            )
    return {name: items[name] for name in abstract}


def check_directory(workdir: Path) -> None:
    """Raises UserError for a workdir in which checkpoints could be saved but not restored as they were.

    None of UNSAFE_CHARACTERS may be anywhere in the path, with symbolic links resolved.
    """
    directory = _directory(workdir)
    found = [character for character in UNSAFE_CHARACTERS if character in str(directory)]
    if found:
        raise UserError(
            f"checkpoints in {directory} could not be restored, because of the {' and '.join(found)} in that path; "
            f"give a --workdir without {' '.join(UNSAFE_CHARACTERS)}"
        )


def _directory(workdir: Path) -> Path:
    return Path(workdir).resolve() / "checkpoints"
