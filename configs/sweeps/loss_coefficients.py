"""Fig. 10: the weights of both regularisers, (0.1, 0.5), times a joint factor.

yfcc15m: 5 runs of ViT-L/16 on YFCC15M. scenes: 15 runs for two CPU cores.

The paper: results are robust to factors from 0.5 to 2.5. The figure is the paper's, the steps between are ours.
"""

from configs.sweeps import on_scenes, Sweep

WEIGHTS = {"objective.sparsity": 0.1, "objective.consistency": 0.5}
VARIANTS = {
    f"times_{factor}": {key: round(factor * weight, 6) for key, weight in WEIGHTS.items()}
    for factor in (0.5, 1.0, 1.5, 2.0, 2.5)
}
SWEEPS = {
    "yfcc15m": Sweep("configs/paper.py:tc_jepa_yfcc15m_l16", {}, VARIANTS, seeds=(0,)),
    "scenes": on_scenes(VARIANTS),
}
