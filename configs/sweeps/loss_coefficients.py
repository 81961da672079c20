"""Fig. 10: both regularisers' weights, (0.1, 0.5), times a joint factor. 5 runs of ViT-L/16 on YFCC15M.

  python -m launch.sweep --sweep=configs/sweeps/loss_coefficients.py --set=data.path=DATA \\
    --set=model.text_weights=T5 --workdir=runs/loss_coefficients

The paper: results are robust to factors from 0.5 to 2.5. The figure is the paper's, the steps between are ours.
"""

from configs.sweeps import Sweep

SPARSITY, CONSISTENCY = 0.1, 0.5
VARIANTS = {
    f"times_{factor}": {
        "objective.sparsity": round(factor * SPARSITY, 6),
        "objective.consistency": round(factor * CONSISTENCY, 6),
    }
    for factor in (0.5, 1.0, 1.5, 2.0, 2.5)
}


def get_sweep() -> Sweep:
    return Sweep("configs/tc_jepa_yfcc15m_l16.py", {}, VARIANTS, seeds=(0,))
