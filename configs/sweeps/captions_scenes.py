"""The numbers of captions of Fig. 11 on scenes, for two CPU cores: 12 runs.

python -m launch.sweep --sweep=configs/sweeps/captions_scenes.py --workdir=runs/captions_scenes
"""

from configs.sweeps import on_scenes, Sweep
from configs.sweeps.captions import VARIANTS


def get_sweep() -> Sweep:
    return on_scenes(VARIANTS)
