"""An experiment: everything that a configuration comes to, built once."""

import dataclasses
import functools

import grain
import jax
import ml_collections

from tc_jepa.config import data, methods
from tc_jepa.data import pipeline
from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.data.pipeline import Inputs
from tc_jepa.data.sources import Captioned
from tc_jepa.data.word_vectors.folder import WordVectorFolder
from tc_jepa.distributed import sharding
from tc_jepa.methods.method import Batch, Method
from tc_jepa.models.kernels.backend import Backend, BACKENDS, PLAIN
from tc_jepa.models.layers import Params
from tc_jepa.optimizer import adamw, rate_scale, Schedules
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.state import initial_state, TrainState
from tc_jepa.storage.run_data import Found


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """What training, monitoring, reports and evaluation need of a configuration.

    `config` is complete and valid. `mesh` is None for networks that run on one device. `words` are the folders of
    stored word vectors, and `reader` reads captions; both may be absent. `frozen` are parameters that are never
    trained, by name of network, on the host. `given_extra` is a teacher's extra state, on the host, else None.
    """

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh | None
    method: Method
    inputs: Inputs
    heldout_inputs: Inputs
    reader: CaptionReader | None
    words: list[WordVectorFolder]
    frozen: Params
    given_extra: Params | None
    schedules: Schedules

    @functools.cached_property
    def optimizer(self):
        chosen = self.config.optimizer
        return adamw(self.schedules, chosen.beta1, chosen.beta2, chosen.epsilon)

    @functools.cached_property
    def source(self) -> Captioned:
        """The training images."""
        return methods.training_source(self.config, self.words)

    @functools.cached_property
    def held_out(self) -> Captioned:
        """The validation images; the training images where there are none, which is logged."""
        return methods.held_out_source(self.config, self.words)

    @functools.cached_property
    def run_data(self) -> Found:
        """What the data of the run holds, to be compared when it is resumed."""
        return data.run_data(self.config, self.words)

    @functools.cached_property
    def example(self) -> Batch:
        """One row of a batch, for its shapes."""
        return self.inputs.example(self.source[0])

    def batches(self, batch_size: int) -> grain.MapDataset:
        """This process's part of the training batches. `batch_size` is global."""
        return self._batches(self.source, self.inputs, batch_size, self.config.train.seed)

    def first_batch(self, images: int) -> Batch:
        """The first images of the training stream, over all processes, as a batch of their own."""
        return pipeline.batches(self.source, self.inputs, batch_size=images, seed=self.config.train.seed)[0]

    def heldout_batches(self, batch_size: int, seed: int) -> grain.MapDataset:
        """The same of held-out images."""
        return self._batches(self.held_out, self.heldout_inputs, batch_size, seed)

    def _batches(self, source: Captioned, inputs: Inputs, batch_size: int, seed: int) -> grain.MapDataset:
        process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        return pipeline.batches(source, inputs, batch_size=batch_size, seed=seed, **process)

    def initial_state(
        self, frozen: Params, given: Params | None = None, given_extra: Params | None = None
    ) -> TrainState:
        """Returns the state before the first step, as a pure function of parameters: see state.initial_state."""
        seed = self.config.train.seed
        return initial_state(self.method, self.example, self.optimizer, seed, frozen, given, given_extra)


def build_experiment(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh | None = None) -> Experiment:
    """Builds an experiment from a complete, valid configuration.

    UserError for data, word vectors or weights that are missing or do not fit.
    """
    module = methods.chosen(config)
    backend = PLAIN if mesh is None else _backend(config, mesh)
    words = methods.word_folders(config)
    teacher, teacher_params = None, None
    if module.teacher_path(config):
        teacher, teacher_params = pretrained.teacher(config, module.teacher_path(config), backend)
    parts = module.build(config, words, backend, teacher)
    return Experiment(
        config=config,
        mesh=mesh,
        method=parts.method,
        inputs=parts.inputs,
        heldout_inputs=parts.heldout_inputs,
        reader=parts.reader,
        words=words,
        frozen=parts.frozen,
        given_extra=teacher_params,
        schedules=schedules(config),
    )


def _backend(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Backend:
    """The kernels that a run asks for, or plain ones on other devices, where devices.check_step refuses to train."""
    name = config.model.kernels if config.model.kernels == sharding.platform(mesh) else "plain"
    return BACKENDS[name](sharding.constrain_to(mesh), sharding.on_each_device(mesh))


def schedules(config: ml_collections.ConfigDict) -> Schedules:
    chosen = config.optimizer
    scale = rate_scale(chosen.batch_rule, config.train.batch_size)
    return Schedules(
        steps=config.train.steps,
        warmup_steps=chosen.warmup_steps,
        start_learning_rate=scale * chosen.start_learning_rate,
        peak_learning_rate=scale * chosen.peak_learning_rate,
        final_learning_rate=scale * chosen.final_learning_rate,
        start_weight_decay=chosen.start_weight_decay,
        final_weight_decay=chosen.final_weight_decay,
    )
