"""Fig. 9: the size of target blocks, without captions (I-JEPA) and with them.

imagenet: 10 runs of ViT-B/16 on ImageNet-1k. scenes: 30 runs for two CPU cores.

The figure is the paper's, the scales are ours. The two halves differ in captions only: both have the same objective,
which is not the one of configs/paper.py:ijepa_in1k_b16. At the paper's size contexts fit uncut at every scale (at most
121 patches were seen in 12 groups of 128), and the smallest blocks, of 9 patches, are why masking.min_context is 8
instead of 10. On scenes contexts are not cut either (scenes_standard.py cuts them to 12 patches): otherwise all scales
would show equally much.
"""

from configs.sweeps import on_scenes, Sweep

SCALES = ((0.05, 0.1), (0.1, 0.15), (0.15, 0.2), (0.2, 0.25), (0.25, 0.3))
CONDITIONERS = {"ijepa": "none", "tc_jepa": "word_cross_attention"}
VARIANTS = {
    f"{name}_{low}_{high}": {"model.conditioner": conditioner, "masking.target_scale": (low, high)}
    for name, conditioner in CONDITIONERS.items()
    for low, high in SCALES
}
UNCUT = {"masking.context_tokens": 128, "masking.min_context": 8}
SWEEPS = {
    "imagenet": Sweep("configs/paper.py:tc_jepa_in1k_b16", UNCUT, VARIANTS, seeds=(0,)),
    "scenes": on_scenes(VARIANTS, {"masking.context_tokens": 36}),
}
