"""Fig. 12: an image's raw caption alone, against many captions. 2 runs of ViT-L/16 on YFCC15M.

  python -m launch.sweep --sweep=configs/sweeps/raw_caption.py --set=data.path=DATA --set=model.text_weights=T5 \\
    --workdir=runs/raw_caption

The raw caption must come first among an image's captions in DATA. The figure is the paper's; its recipe samples 8 of
the generated captions and the raw one.
"""

from configs.sweeps import Sweep

VARIANTS = {
    "raw": {"captions.candidates": 1, "captions.per_image": 1},
    "many": {"captions.candidates": 0, "captions.per_image": 8},
}


def get_sweep() -> Sweep:
    return Sweep("configs/tc_jepa_yfcc15m_l16.py", {}, VARIANTS, seeds=(0,))
