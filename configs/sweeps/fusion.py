"""Table 6: how the results of an image's captions are combined.

imagenet: 3 runs of ViT-B/16 on ImageNet-1k. scenes: 9 runs for two CPU cores.

The paper: the maximum is better than the mean; attention is on par or slightly better, and costs more.
"""

from configs.sweeps import on_scenes, Sweep

VARIANTS = {fusion: {"conditioner.fusion": fusion} for fusion in ("max", "mean", "attention")}
SWEEPS = {
    "imagenet": Sweep("configs/paper.py:tc_jepa_in1k_b16", {}, VARIANTS, seeds=(0,)),
    "scenes": on_scenes(VARIANTS),
}
