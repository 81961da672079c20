"""Tasks of the evaluation on the encoder of a run under way. They read data of their own: training's is not touched."""

from collections.abc import Callable

import jax
import ml_collections

from tc_jepa import build
from tc_jepa.data.prepared import PreparedSource
from tc_jepa.data.sources import TRAIN
from tc_jepa.errors import UserError
from tc_jepa.evaluation.encoder import frozen_vit
from tc_jepa.evaluation.evaluate import check_data, evaluate
from tc_jepa.evaluation.probes import PROBES
from tc_jepa.models.layers import Params

PREFIX = "eval/"  # of their keys in metrics.jsonl
ASIDE = ("_low", "_high")  # intervals stay out of it


def judge(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Callable[[Params], dict[str, float]]:
    """A function from the parameters of the encoder that a run is for to "eval/knn/TASK" and so on, by
    config.train.eval_tasks; without any, one that says nothing.

    On the data of evaluation.data, or the run's own. UserError at once where it lacks labels, and for several
    processes, each of which would see a part of the features.
    """
    tasks = [name for name in config.train.eval_tasks.split(",") if name]
    if not tasks:
        return lambda params: {}
    if jax.process_count() > 1:
        raise UserError("train.eval_tasks needs a single process; leave it empty, and judge with launch.evaluate")
    path, split = config.evaluation.data, build.test_split(config)
    train, test = (PreparedSource(path, x) if path else build.source(config, x) for x in (TRAIN, split))
    check_data(train, test, [name for name in tasks if name in PROBES], segmentation=False)
    settings = {"image_size": config.image.size, "batch_size": config.evaluation.batch_size, "mesh": mesh}
    frozen = None
    sizes = {f"{name}_examples": config.train.eval_examples for name in ("train", "test", "dense")}

    def run(params: Params) -> dict[str, float]:
        nonlocal frozen
        # Compiled once: only the parameters change.
        frozen = frozen.of(params) if frozen else frozen_vit(build.encoder(config), params, **settings)
        scores = evaluate(frozen, {}, train, test, tasks, **sizes).scores
        return {f"{PREFIX}{name}": value for name, value in scores.items() if not name.endswith(ASIDE)}

    return run
