"""Table 6: how the results of an image's captions become one. 3 runs of ViT-B/16 on ImageNet-1k.

  python -m launch.sweep --sweep=configs/sweeps/fusion.py --set=data.path=DATA --set=model.text_weights=T5 \\
    --workdir=runs/fusion

The paper: the maximum is better than the mean; attention is on par or slightly better, and dearer.
"""

from configs.sweeps import Sweep

VARIANTS = {fusion: {"conditioner.fusion": fusion} for fusion in ("max", "mean", "attention")}


def get_sweep() -> Sweep:
    return Sweep("configs/tc_jepa_in1k_b16.py", {}, VARIANTS, seeds=(0,))
