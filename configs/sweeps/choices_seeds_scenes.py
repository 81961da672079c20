"""The choices whose effect in choices_scenes is larger than the spread over seeds, with three seeds: 15 runs.

python -m launch.sweep --sweep=configs/sweeps/choices_seeds_scenes.py --workdir=runs/choices_seeds_scenes
"""

from configs.sweeps import choices_scenes, Sweep

VARIANTS = {name: choices_scenes.VARIANTS[name] for name in ("default", "captions_8", "context_12", "smooth_l1", "mse")}


def get_sweep() -> Sweep:
    return choices_scenes.get_sweep()._replace(variants=VARIANTS, seeds=(0, 1, 2), baseline="default")
