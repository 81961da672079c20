"""Fig. 9: the size of target blocks, without words (I-JEPA) and with them. 10 runs of ViT-B/16 on ImageNet-1k.

  python -m launch.sweep --sweep=configs/sweeps/block_scales.py --set=data.path=DATA --set=model.text_weights=T5 \\
    --workdir=runs/block_scales

The figure is the paper's, the scales are ours. Only words differ between the two halves: both have the same objective,
which is not the one of configs/ijepa_in1k_b16.py. Contexts fit uncut at every scale (at most 121 patches were seen
in 12 groups of 128), and the smallest blocks, of 9 patches, are why masking.min_context is 8 instead of 10.
"""

from configs.sweeps import Sweep

SCALES = ((0.05, 0.1), (0.1, 0.15), (0.15, 0.2), (0.2, 0.25), (0.25, 0.3))
CONDITIONERS = {"ijepa": "none", "tc_jepa": "word_cross_attention"}
VARIANTS = {
    f"{name}_{low}_{high}": {"model.conditioner": conditioner, "masking.target_scale": (low, high)}
    for name, conditioner in CONDITIONERS.items()
    for low, high in SCALES
}


def get_sweep() -> Sweep:
    settings = {"masking.context_tokens": 128, "masking.min_context": 8}
    return Sweep("configs/tc_jepa_in1k_b16.py", settings, VARIANTS, seeds=(0,))
