"""The conditioners of Fig. 4 on scenes, for two CPU cores: 30 runs.

python -m launch.sweep --sweep=configs/sweeps/conditioners_scenes.py --workdir=runs/conditioners_scenes
"""

from configs.sweeps import on_scenes, Sweep
from configs.sweeps.conditioners import VARIANTS


def get_sweep() -> Sweep:
    return on_scenes(VARIANTS)
