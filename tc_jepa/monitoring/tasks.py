"""Evaluation tasks on the encoder of a run that is still training. They read data of their own, not training's.

Runs are compared and tuned by these scores, so the split test is never read: see `held_out`.
"""

from collections.abc import Callable

from absl import logging
import ml_collections
import numpy as np

from tc_jepa.config import data, models
from tc_jepa.data.prepared import splits
from tc_jepa.data.sources import Source, Subset, TRAIN, VALIDATION
from tc_jepa.distributed import sharding
from tc_jepa.distributed.processes import to_each
from tc_jepa.errors import UserError
from tc_jepa.evaluation import tasks
from tc_jepa.evaluation.encoder import frozen_vit
from tc_jepa.evaluation.examples import choose
from tc_jepa.evaluation.runner import check_data, evaluate
from tc_jepa.models.layers import Params

PREFIX = "eval/"  # of their keys in metrics.jsonl
ASIDE = ("_low", "_high")  # intervals stay out of it
SLICE = 5  # without a split val, one in so many train examples is held out


def task_monitor(config: ml_collections.ConfigDict) -> Callable[[Params], dict[str, float]]:
    """Returns a function from the evaluation encoder's parameters to scores, such as "eval/knn/shape".

    The tasks are config.train.eval_tasks; without any the function returns {}. The data is evaluation.data, or the
    run's own: probes are fitted on its split train and scored on val, or without a val on a slice of train that they
    are not fitted on. evaluation.test_split is not used. Each of several processes computes the same scores on its own
    devices. UserError at once for data without labels.
    """
    names = [name for name in config.train.eval_tasks.split(",") if name]
    if not names:
        return lambda params: {}
    judged_on = data.on_data(config, config.evaluation.data)
    train, scored = held_out(judged_on)
    check_data([tasks.load(name) for name in names], train, scored)
    read = {"image_size": config.image.size, "batch_size": config.evaluation.batch_size, "mesh": sharding.local_mesh()}
    frozen = None
    sizes = {f"{name}_examples": config.train.eval_examples for name in ("train", "test", "dense")}

    def run(params: Params) -> dict[str, float]:
        nonlocal frozen
        params = to_each(params)
        # Compiled once: only the parameters change.
        frozen = frozen.of(params) if frozen else frozen_vit(models.encoder(config), params, **read)
        scores = evaluate(frozen, {}, train, scored, names, **sizes).scores
        return {f"{PREFIX}{name}": value for name, value in scores.items() if not name.endswith(ASIDE)}

    return run


def held_out(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
    """Returns what probes are fitted on and what they are scored on: the splits train and val of the data.

    Without a val, a fixed random fifth of train is scored and the rest fitted on, and a warning says so. UserError
    where train is then too small, or missing.
    """
    train, path = data.source(config, TRAIN), config.data.path
    if not path or VALIDATION in splits(path):
        return train, data.source(config, VALIDATION)
    if len(train) < SLICE:
        raise UserError(f"{path} has no split val and only {len(train)} train images; prepare it with a split val")
    logging.warning("%s has no split val: train.eval_tasks are scored on a fifth of its training images", path)
    held = choose(len(train), len(train) // SLICE)
    return Subset(train, np.setdiff1d(np.arange(len(train)), held)), Subset(train, held)
