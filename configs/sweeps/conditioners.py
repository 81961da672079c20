"""Fig. 4: how the predictor reads captions, and what the two regularisers add.

imagenet: 10 runs of ViT-B/16 on ImageNet-1k. scenes: 30 runs for two CPU cores.

The paper: attention to the words of each caption at every layer is best; in a single layer it is much worse, and
without both regularisers performance drops much. The paper does not say which layer the single one is; here it is the
first.
"""

from configs.sweeps import on_scenes, Sweep

WORDS = {"model.conditioner": "word_cross_attention"}
VARIANTS = {
    "none": {"model.conditioner": "none"},
    "words": WORDS,
    "words_one_layer": WORDS | {"conditioner.layers": (0,)},
    "words_no_sparsity": WORDS | {"objective.sparsity": 0.0},
    "words_no_consistency": WORDS | {"objective.consistency": 0.0},
    "words_no_regulariser": WORDS | {"objective.sparsity": 0.0, "objective.consistency": 0.0},
    "caption": {"model.conditioner": "caption_cross_attention"},
    "adaln": {"model.conditioner": "adaln"},
    "feature": {"model.conditioner": "feature"},
    "sequence": {"model.conditioner": "sequence"},
}

SWEEPS = {
    "imagenet": Sweep("configs/paper.py:tc_jepa_in1k_b16", {}, VARIANTS, seeds=(0,)),
    "scenes": on_scenes(VARIANTS),
}
