"""One caption against many, as in Fig. 12, on scenes, for two CPU cores: 6 runs.

  python -m launch.sweep --sweep=configs/sweeps/raw_caption_scenes.py --workdir=runs/raw_caption_scenes

A scene has no raw caption; its first one, a sentence about one object, stands for it.
"""

from configs.sweeps import on_scenes, Sweep
from configs.sweeps.raw_caption import VARIANTS


def get_sweep() -> Sweep:
    return on_scenes(VARIANTS)
