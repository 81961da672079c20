"""A training run's networks with their parameters, for those who look at more of it than its encoder."""

from collections.abc import Sequence
import functools
import os
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import optax

from tc_jepa.config import build
from tc_jepa.data import pipeline
from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.models.layers import Params
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.state import initial_state, Networks
from tc_jepa.storage.checkpoint import chosen_step, restore_trained

READS_WORDS = "word_cross_attention"  # of model.conditioner: the only one with a cosine for each patch and word


class TrainedRun(NamedTuple):
    """`params` holds encoder, predictor and text; `target_params` the target's; `captions` reads what the run read.

    A run without a conditioner has neither text nor `captions`.
    """

    config: ml_collections.ConfigDict
    step: int
    networks: Networks
    params: Params
    target_params: Params
    captions: CaptionReader | None

    @property
    def reads_words(self) -> bool:
        return self.config.model.conditioner == READS_WORDS

    def judged(self) -> Params:
        """The parameters of the encoder that the run is for."""
        return self.networks.target.judged(self.target_params, self.params["encoder"])

    def at_initialisation(self) -> "TrainedRun":
        """The same run before its first step."""
        config = self.config
        example = pipeline.example(
            build.training_source(config), build.augment(config, self.captions), build.masks(config)
        )
        frozen = {name: params for name, params in self.params.items() if name == "text" and not self._learns_words}
        teacher = self.target_params if config.target_encoder.kind == "frozen" else None
        optimizer = optax.identity()
        begin = functools.partial(initial_state, self.networks, example, optimizer, config.train.seed)
        state = jax.jit(begin)(frozen, teacher)
        return self._replace(step=0, params={**frozen, **state.params}, target_params=state.target_params)

    @property
    def _learns_words(self) -> bool:
        return self.config.model.text == "embedding"

    def reader(self) -> FrozenReader:
        """Its text side, frozen."""
        form, grid = self.config.objective.prediction, build.grid(self.config)
        return FrozenReader(self.networks, self.params, self.target_params, grid=grid, form=form)


def open_run(
    workdir: str | os.PathLike, config: ml_collections.ConfigDict, step: int | None = None, words: Sequence = ()
) -> TrainedRun:
    """The run in a workdir, at a step or its newest. UserError where anything is missing or does not fit.

    `config` is the one that it was trained with, whole: launch.common.run_config adds the keys that came since.
    `words` are build.word_folders of the run's configuration, needed only where it read stored word vectors.
    """
    workdir = Path(workdir)
    step = chosen_step(workdir, step)
    captions = build.caption_reader(config, words)
    text_encoder, frozen = build.text_encoder(config, captions)
    teacher, teacher_params = pretrained.teacher(config)
    networks = build.networks(config, text_encoder, teacher)
    held = [name for name in ("encoder", "predictor", "text") if getattr(networks, name) is not None]
    params = {name: restore_trained(workdir, step, name) for name in held if name not in frozen} | frozen
    if config.target_encoder.kind == "ema":
        size = config.image.size
        target_params, _ = pretrained.restored_encoder(workdir, step, networks.encoder, size, ema=True)
    else:
        target_params = teacher_params or {}
    return TrainedRun(config, step, networks, params, target_params, captions)
