"""The comparison of evidence_scenes at the paper's smallest size: ViT-B/16 on captioned YFCC15M: 12 runs.

  python -m launch.sweep --sweep=configs/sweeps/evidence.py --set=data.path=DATA --set=model.text_weights=T5 \\
    --workdir=runs/evidence
"""

from configs.sweeps import Sweep
from configs.sweeps.evidence_scenes import VARIANTS


def get_sweep() -> Sweep:
    return Sweep("configs/tc_jepa_yfcc15m_b16.py", {}, VARIANTS, seeds=(0, 1, 2), baseline="none")
