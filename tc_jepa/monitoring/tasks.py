"""Tasks of the evaluation on the encoder of a run under way. They read data of their own: training's is not touched."""

from collections.abc import Callable

import ml_collections

from tc_jepa.config import data, models
from tc_jepa.data.sources import TRAIN
from tc_jepa.distributed import sharding
from tc_jepa.distributed.processes import to_each
from tc_jepa.evaluation.encoder import frozen_vit
from tc_jepa.evaluation.probes import PROBES
from tc_jepa.evaluation.runner import check_data, evaluate
from tc_jepa.models.layers import Params

PREFIX = "eval/"  # of their keys in metrics.jsonl
ASIDE = ("_low", "_high")  # intervals stay out of it


def judge(config: ml_collections.ConfigDict) -> Callable[[Params], dict[str, float]]:
    """A function from the parameters of the encoder that a run is for to "eval/knn/TASK" and so on, by
    config.train.eval_tasks; without any, one that says nothing.

    On the data of evaluation.data, or the run's own (data.on_data). UserError at once where it lacks labels. Of
    several processes each judges by itself, on its own devices, and finds the same.
    """
    tasks = [name for name in config.train.eval_tasks.split(",") if name]
    if not tasks:
        return lambda params: {}
    judged_on = data.on_data(config, config.evaluation.data)
    train, test = (data.source(judged_on, split) for split in (TRAIN, data.test_split(judged_on)))
    check_data(train, test, [name for name in tasks if name in PROBES], segmentation=False)
    settings = {
        "image_size": config.image.size,
        "batch_size": config.evaluation.batch_size,
        "mesh": sharding.local_mesh(),
    }
    frozen = None
    sizes = {f"{name}_examples": config.train.eval_examples for name in ("train", "test", "dense")}

    def run(params: Params) -> dict[str, float]:
        nonlocal frozen
        params = to_each(params)
        # Compiled once: only the parameters change.
        frozen = frozen.of(params) if frozen else frozen_vit(models.encoder(config), params, **settings)
        scores = evaluate(frozen, {}, train, test, tasks, **sizes).scores
        return {f"{PREFIX}{name}": value for name, value in scores.items() if not name.endswith(ASIDE)}

    return run
