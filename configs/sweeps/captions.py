"""Fig. 11: how many of an image's captions the predictor reads.

yfcc15m: 4 runs of ViT-L/16 on YFCC15M. scenes: 12 runs for two CPU cores.

The figure is the paper's, the counts are ours; the paper's recipe reads 8.
"""

from configs.sweeps import on_scenes, Sweep

VARIANTS = {f"captions_{count}": {"captions.per_image": count} for count in (1, 2, 4, 8)}
SWEEPS = {
    "yfcc15m": Sweep("configs/paper.py:tc_jepa_yfcc15m_l16", {}, VARIANTS, seeds=(0,)),
    "scenes": on_scenes(VARIANTS),
}
