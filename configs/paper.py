"""The runs of the TC-JEPA paper and of I-JEPA, by name.

  python -m launch.train --config=configs/paper.py:ijepa_in1k_h14 --config.data.path=DATA --workdir=runs/ijepa_in1k_h14
  python -m launch.train --config=configs/paper.py:tc_jepa_in1k_b16 --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_in1k_b16
  python -m launch.train --config=configs/paper.py:tc_jepa_cc27m_l14 --config.data.path=CC12M,YFCC15M \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_cc27m_l14

Sources: facebookresearch/ijepa configs/*.yaml at commit 52c1ae95; Assran et al. 2023 (arXiv 2301.08243), appendix A.1;
Huang et al. 2026 (arXiv 2605.03245), section 4 and appendix C. Global batch 2048, peak learning rate 1e-3, weight decay
0.04 to 0.4, EMA momentum 0.996 to 1 and crops of 30 % to 100 % without flips are the defaults of configs/base.py.

Slices on which the compilers say that they fit, at least a third of the memory to spare (configs/plans.py has the
settings, tc_jepa/planning/README.md the table):
  B/16          v5e:4x4, v6e:4x4, v5p:2x2x4, 16 H100
  L/16          v5e:8x8, v6e:4x4, v5p:2x2x4, 16 H100
  H/14          v5e:8x8, v6e:8x8, v5p:2x4x4, 32 H100
  g/16          v5e:8x8, v6e:8x8, v5p:2x4x4, 32 H100
  H/16, 448 px  v5e:8x16, v6e:8x8, v5p:4x4x4, 64 H100
"""

import dataclasses

import ml_collections

from configs import base
from tc_jepa.errors import UserError

IMAGENET_1K = 1_281_167  # training images
IMAGENET_22K = 14_197_122
YFCC15M, CC27M = 15_000_000, 27_000_000  # nominal; the paper gives no counts

# K by the side of the patch grid: over 300 groups of 128 (grid 28: of 16) images the released masks left at most 66, 96
# and 392 context tokens. These are the next multiples of 8 above that. A longer context would be cut, and
# counted as context_dropped.
CONTEXT_TOKENS = {14: 72, 16: 104, 28: 400}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs between the runs. `images_per_gpu` images shared the sizes of their blocks in the released run."""

    encoder: str
    patch_size: int
    images: int  # of an epoch
    epochs: int
    warmup_epochs: int
    predictor_depth: int = 12
    image_size: int = 224
    images_per_gpu: int = 128


IJEPA = {
    # As in its paper; no configuration was released. Linear probe on ImageNet-1k: 72.9 %.
    "ijepa_in1k_b16": Recipe("base", 16, IMAGENET_1K, epochs=600, warmup_epochs=15, predictor_depth=6),
    # As in its paper; no configuration was released. Linear probe on ImageNet-1k: 77.5 % (Table 1; Table 13: 77.8).
    "ijepa_in1k_l16": Recipe("large", 16, IMAGENET_1K, epochs=600, warmup_epochs=15),
    # As released (configs/in1k_vith14_ep300.yaml). Linear probe on ImageNet-1k: 79.3 %.
    "ijepa_in1k_h14": Recipe("huge", 14, IMAGENET_1K, epochs=300, warmup_epochs=40),
    # As released (configs/in1k_vith16-448_ep300.yaml). Fine-tuned on ImageNet-1k: 87.1 %.
    "ijepa_in1k_h16_448": Recipe(
        "huge", 16, IMAGENET_1K, epochs=300, warmup_epochs=40, image_size=448, images_per_gpu=16
    ),
    # The TC-JEPA paper's baseline on ImageNet-21k. Epochs are counted as ImageNet-1k's, as in tc_jepa_in21k_l16. Linear
    # probe: 77.2 % on ImageNet-1k, 88.7 % on CIFAR-100; linear layer: 38.2 mIoU on ADE20k.
    "ijepa_in21k_l16": Recipe("large", 16, IMAGENET_1K, epochs=1200, warmup_epochs=15),
    # As released (configs/in22k_vith14_ep66.yaml).
    "ijepa_in22k_h14": Recipe("huge", 14, IMAGENET_22K, epochs=66, warmup_epochs=3),
    # As released (configs/in22k_vitg16_ep44.yaml).
    "ijepa_in22k_g16": Recipe("giant", 16, IMAGENET_22K, epochs=44, warmup_epochs=3, predictor_depth=16),
}

# StoP (Bar et al. 2024, arXiv 2308.00566), the paper's second baseline: I-JEPA with noise of variance 0.25 in the place
# of mask tokens. No configuration was released; epochs are I-JEPA's, warm-ups those of its appendix. Linear probe on
# ImageNet-1k: 74.5, 78.5 and 79.6 %.
STOP = {
    "stop_in1k_b16": IJEPA["ijepa_in1k_b16"],
    "stop_in1k_l16": IJEPA["ijepa_in1k_l16"],
    "stop_in1k_h14": IJEPA["ijepa_in1k_h14"],
}

# Figures are the TC-JEPA paper's. in1k and in21k: captioned ImageNet. yfcc15m: generated captions and the raw one.
# cc27m: CC12M and YFCC15M, likewise. Epochs of in21k are counted as ImageNet-1k's, as in the paper.
TC_JEPA = {
    # Linear probe on ImageNet-1k: 75.8 % (I-JEPA 72.9, StoP 74.5).
    "tc_jepa_in1k_b16": Recipe("base", 16, IMAGENET_1K, epochs=600, warmup_epochs=15, predictor_depth=6),
    # Linear probe on ImageNet-1k: 79.6 % (I-JEPA 77.5, StoP 78.5).
    "tc_jepa_in1k_l16": Recipe("large", 16, IMAGENET_1K, epochs=600, warmup_epochs=15),
    # Linear probe on ImageNet-1k: 80.4 % (I-JEPA 79.3, StoP 79.6).
    "tc_jepa_in1k_h14": Recipe("huge", 14, IMAGENET_1K, epochs=300, warmup_epochs=40),
    # Linear probe: 82.1 % on ImageNet-1k, 91.6 % on CIFAR-100; linear layer: 41.2 mIoU on ADE20k.
    "tc_jepa_in21k_l16": Recipe("large", 16, IMAGENET_1K, epochs=1200, warmup_epochs=15),
    "tc_jepa_in21k_h14": Recipe("huge", 14, IMAGENET_1K, epochs=900, warmup_epochs=40),
    # Linear probe on ImageNet-1k: 77.1 %; 54.5 AP on COCO; fine-tuned: 55.2 mIoU on ADE20k (CLIP 66.5, 43.6, 47.8).
    "tc_jepa_yfcc15m_b16": Recipe("base", 16, YFCC15M, epochs=50, warmup_epochs=10, predictor_depth=6),
    # The model of the paper's ablations (Table 3, Fig. 10 to 12).
    "tc_jepa_yfcc15m_l16": Recipe("large", 16, YFCC15M, epochs=50, warmup_epochs=10),
    "tc_jepa_cc27m_b16": Recipe("base", 16, CC27M, epochs=50, warmup_epochs=10, predictor_depth=6),
    # Linear probe: 81.4 % on ImageNet-1k, 91.2 % on CIFAR-100; linear layer: 42.1 mIoU on ADE20k.
    "tc_jepa_cc27m_l16": Recipe("large", 16, CC27M, epochs=50, warmup_epochs=10),
    # Linear probe: 81.9 % on ImageNet-1k; 58.0 AP on COCO; fine-tuned: 58.8 mIoU on ADE20k.
    "tc_jepa_cc27m_l14": Recipe("large", 14, CC27M, epochs=50, warmup_epochs=10),
}


def get_config(name: str = "") -> ml_collections.ConfigDict:
    """The configuration of a run; --config=configs/paper.py:NAME. UserError for an unknown name."""
    for recipes, build in ((IJEPA, ijepa), (STOP, stop), (TC_JEPA, tc_jepa)):
        if name in recipes:
            return build(recipes[name])
    known = ", ".join([*IJEPA, *STOP, *TC_JEPA])
    raise UserError(f"configs/paper.py:{name} is unknown; give NAME, one of {known}, after the colon", about="config")


def ijepa(recipe: Recipe) -> ml_collections.ConfigDict:
    """I-JEPA as released: smooth L1 on LayerNormed targets, masks of the official collator, no words."""
    config = base.get_config()
    config.image.size = recipe.image_size
    epoch = recipe.images // config.train.batch_size  # the official loader drops the rest
    config.train.steps = recipe.epochs * epoch
    config.train.checkpoint_every = config.train.eval_every = 5000
    config.model.encoder = recipe.encoder
    config.model.patch_size = recipe.patch_size
    config.model.predictor.depth = recipe.predictor_depth
    config.model.conditioner = "none"
    config.objective.prediction = "smooth_l1"
    config.optimizer.warmup_steps = recipe.warmup_epochs * epoch
    config.masking.kind = "official"
    config.masking.group_size = recipe.images_per_gpu
    config.masking.context_tokens = CONTEXT_TOKENS[recipe.image_size // recipe.patch_size]
    # Not for groups of 16, which a run with more than 16 processes could not cut alike.
    config.masking.length_multiple = 8 if recipe.images_per_gpu == 128 else 0
    return config


def stop(recipe: Recipe) -> ml_collections.ConfigDict:
    """I-JEPA with StoP's noise."""
    config = ijepa(recipe)
    config.model.position_noise = 0.25
    return config


def tc_jepa(recipe: Recipe) -> ml_collections.ConfigDict:
    """TC-JEPA: I-JEPA's recipe with T5's words at every layer of the predictor, and the L2 norm of Eq. 1.

    T5 v1.0 base and 32 words are our choice, the paper names neither. Give --config.model.text_weights=FOLDER.
    """
    config = ijepa(recipe)
    config.model.conditioner = "word_cross_attention"
    config.model.text = "t5"
    config.objective.prediction = "l2_norm"
    return config
