"""The loss coefficients of Fig. 10 on scenes, for two CPU cores: 15 runs.

python -m launch.sweep --sweep=configs/sweeps/loss_coefficients_scenes.py --workdir=runs/loss_coefficients_scenes
"""

from configs.sweeps import on_scenes, Sweep
from configs.sweeps.loss_coefficients import VARIANTS


def get_sweep() -> Sweep:
    return on_scenes(VARIANTS)
