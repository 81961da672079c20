"""A training run opened again: its experiment with the parameters of a checkpoint."""

import dataclasses
import os

import jax
import ml_collections

from tc_jepa.experiment.experiment import build_experiment, Experiment
from tc_jepa.models.layers import Params
from tc_jepa.storage.checkpoint import chosen_step, restore_extra, restore_trained
from tc_jepa.storage.files import as_path


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedRun:
    """`params` are the trained and frozen parameters by name of network, `extra` the method's extra state."""

    experiment: Experiment
    step: int
    params: Params
    extra: Params

    @property
    def config(self) -> ml_collections.ConfigDict:
        return self.experiment.config

    def evaluation_encoder(self) -> Params:
        return self.experiment.method.evaluation_encoder(self.params, self.extra)

    def at_initialisation(self) -> "TrainedRun":
        """The same run before its first step."""
        frozen = self.experiment.frozen
        given_extra = None if self.experiment.given_extra is None else self.extra  # a teacher that never changes
        state = jax.jit(self.experiment.initial_state)(frozen, None, given_extra)
        return dataclasses.replace(self, step=0, params={**frozen, **state.params}, extra=state.extra)


def open_run(workdir: str | os.PathLike, config: ml_collections.ConfigDict, step: int | None = None) -> TrainedRun:
    """Opens the run in a workdir at a step, or at its newest. UserError where anything is missing or does not fit.

    `config` is the complete configuration that it was trained with.
    """
    workdir = as_path(workdir)
    step = chosen_step(workdir, step)
    experiment = build_experiment(config)
    abstract = jax.eval_shape(experiment.initial_state, experiment.frozen, None, experiment.given_extra)
    params = {name: restore_trained(workdir, step, name) for name in abstract.params} | experiment.frozen
    return TrainedRun(experiment, step, params, restore_extra(workdir, step, abstract.extra))
