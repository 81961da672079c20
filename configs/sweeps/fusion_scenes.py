"""The fusions of Table 6 on scenes, for two CPU cores: 9 runs.

python -m launch.sweep --sweep=configs/sweeps/fusion_scenes.py --workdir=runs/fusion_scenes
"""

from configs.sweeps import on_scenes, Sweep
from configs.sweeps.fusion import VARIANTS


def get_sweep() -> Sweep:
    return on_scenes(VARIANTS)
