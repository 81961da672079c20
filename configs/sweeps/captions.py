"""Fig. 11: how many of an image's captions the predictor reads. 4 runs of ViT-L/16 on YFCC15M.

  python -m launch.sweep --sweep=configs/sweeps/captions.py --set=data.path=DATA --set=model.text_weights=T5 \\
    --workdir=runs/captions

The figure is the paper's, the counts are ours; the paper's recipe reads 8.
"""

from configs.sweeps import Sweep

VARIANTS = {f"captions_{count}": {"captions.per_image": count} for count in (1, 2, 4, 8)}


def get_sweep() -> Sweep:
    return Sweep("configs/tc_jepa_yfcc15m_l16.py", {}, VARIANTS, seeds=(0,))
