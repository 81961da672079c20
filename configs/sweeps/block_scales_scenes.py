"""The block scales of Fig. 9 on scenes, for two CPU cores: 30 runs.

  python -m launch.sweep --sweep=configs/sweeps/block_scales_scenes.py --workdir=runs/block_scales_scenes

Contexts are never cut (the quickstart cuts them to 12 patches): else all scales would show equally much.
"""

from configs.sweeps import on_scenes, Sweep
from configs.sweeps.block_scales import VARIANTS


def get_sweep() -> Sweep:
    return on_scenes(VARIANTS, {"masking.context_tokens": 36})
