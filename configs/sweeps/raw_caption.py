"""Fig. 12: an image's raw caption alone, against many captions.

yfcc15m: 2 runs of ViT-L/16 on YFCC15M. scenes: 6 runs for two CPU cores.

The raw caption must be the first of an image's captions in the data. The figure is the paper's; its recipe samples 8 of
the generated captions and the raw one. A scene has no raw caption: its first one, a sentence about one object, stands
for it.
"""

from configs.sweeps import on_scenes, Sweep

VARIANTS = {
    "raw": {"captions.candidates": 1, "captions.per_image": 1},
    "many": {"captions.candidates": 0, "captions.per_image": 8},
}

SWEEPS = {
    "yfcc15m": Sweep("configs/paper.py:tc_jepa_yfcc15m_l16", {}, VARIANTS, seeds=(0,)),
    "scenes": on_scenes(VARIANTS),
}
