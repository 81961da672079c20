"""Sweeps: one configuration, its variants, and seeds. A sweep is a file beside this one with `get_sweep()`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

Settings = Mapping[str, Any]  # key of configs/base.py -> value


class Sweep(NamedTuple):
    """`settings` hold for all variants; a variant's own come after them. Each variant runs once with every seed.

    `baseline` is the variant whose scores are taken off the others', seed by seed, in a table of their own.
    """

    config: str  # path of the configuration file, from the repository's root
    settings: Settings
    variants: Mapping[str, Settings]  # by name, which is also the folder's
    seeds: tuple[int, ...]
    baseline: str | None = None


def on_scenes(variants: Mapping[str, Settings], settings: Settings | None = None) -> Sweep:
    """The same variants on the quickstart's scenes, a quarter as long, with three seeds: for two CPU cores.

    So few steps order what differs much. Read differences beside the spread over seeds.
    """
    short = {
        "train.steps": 600,
        "train.checkpoint_every": 600,
        "train.eval_every": 300,
        "objective.warmup_steps": 240,
        "optimizer.warmup_steps": 100,
        "evaluation.train_examples": 4000,
        "evaluation.test_examples": 1000,
    }
    return Sweep("configs/quickstart.py", short | dict(settings or {}), variants, seeds=(0, 1, 2))
