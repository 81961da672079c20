"""Fig. 4: how the predictor reads captions, and what the two regularisers add. 10 runs of ViT-B/16 on ImageNet-1k.

  python -m launch.sweep --sweep=configs/sweeps/conditioners.py --set=data.path=DATA --set=model.text_weights=T5 \\
    --workdir=runs/conditioners

The paper: attention to the words of each caption at every layer is best; in a single layer it is much worse, and
without both regularisers performance drops much. Which layer the single one is, it does not say; here it is the first.
"""

from configs.sweeps import Sweep

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


def get_sweep() -> Sweep:
    return Sweep("configs/tc_jepa_in1k_b16.py", {}, VARIANTS, seeds=(0,))
