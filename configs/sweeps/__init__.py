"""Sweeps: one configuration, its variants, and seeds.

A file beside this one defines SWEEPS, its sweeps by name: `--sweep=FILE:NAME`, or the first without a NAME. The paper's
ablations are there at the paper's size, with one seed, and on scenes of the standard level, for two CPU cores:

  python -m launch.sweep --sweep=configs/sweeps/fusion.py --set=data.path=DATA --set=model.text_weights=T5 \\
    --workdir=runs/fusion
  python -m launch.sweep --sweep=configs/sweeps/fusion.py:scenes --workdir=runs/fusion_scenes
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Settings = Mapping[str, Any]  # key of configs/base.py -> value


class Sweep(NamedTuple):
    """Each variant runs once with every seed."""

    config: str  # path of the configuration file, from the repository's root
    settings: Settings  # of all variants
    variants: Mapping[str, Settings]  # by name, which is also the folder's; they come after `settings`
    seeds: tuple[int, ...]
    baseline: str | None = None  # the variant that the gains of the others are measured against, seed by seed


def on_scenes(variants: Mapping[str, Settings], settings: Settings | None = None) -> Sweep:
    """Returns variants on scenes of the standard level, a quarter as long, with three seeds: for two CPU cores.

    So few steps show large differences only. Compare differences with the spread over seeds.
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
    return Sweep("configs/scenes_standard.py", short | dict(settings or {}), variants, seeds=(0, 1, 2))
