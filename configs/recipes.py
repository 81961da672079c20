"""What the recipes share: I-JEPA's released settings and the paper's. The files beside this one are the experiments.

Sources: facebookresearch/ijepa configs/*.yaml at commit 52c1ae95; Assran et al. 2023 (arXiv 2301.08243), appendix A.1;
Huang et al. 2026 (arXiv 2605.03245), section 4 and appendix C. Batch 2048, peak learning rate 1e-3, weight decay 0.04
to 0.4, EMA momentum 0.996 to 1 and crops of 30 % to 100 % without flips are the defaults of configs/base.py.
"""

import ml_collections

from configs import base

IMAGENET_1K = 1_281_167  # training images
IMAGENET_22K = 14_197_122
YFCC15M, CC27M = 15_000_000, 27_000_000  # nominal; the paper gives no counts

# K by the side of the patch grid: over 300 groups of 128 (grid 28: of 16) images the released masks left at most 66, 96
# and 392 context tokens. A longer context would be cut, and counted as context_dropped.
CONTEXT_TOKENS = {14: 80, 16: 112, 28: 400}


def ijepa(
    encoder: str,
    patch_size: int,
    *,
    images: int,
    epochs: int,
    warmup_epochs: int,
    predictor_depth: int = 12,
    image_size: int = 224,
    images_per_gpu: int = 128,
) -> ml_collections.ConfigDict:
    """I-JEPA as released: smooth L1 on LayerNormed targets, masks of the official collator, no words.

    `images_per_gpu` is how many images shared the sizes of their blocks in the released run.
    """
    config = base.get_config()
    config.image.size = image_size
    epoch = images // config.train.batch_size  # the official loader drops the rest
    config.train.steps = epochs * epoch
    config.train.checkpoint_every = config.train.eval_every = 5000
    config.model.encoder = encoder
    config.model.patch_size = patch_size
    config.model.predictor.depth = predictor_depth
    config.model.conditioner = "none"
    config.objective.prediction = "smooth_l1"
    config.optimizer.warmup_steps = warmup_epochs * epoch
    config.masking.kind = "official"
    config.masking.group_size = images_per_gpu
    config.masking.context_tokens = CONTEXT_TOKENS[config.image.size // patch_size]
    return config


def tc_jepa(
    encoder: str, patch_size: int, *, images: int, epochs: int, warmup_epochs: int, predictor_depth: int = 12
) -> ml_collections.ConfigDict:
    """TC-JEPA: I-JEPA's recipe with T5's words at every layer of the predictor, and the L2 norm of Eq. 1.

    T5 v1.0 base and 32 words are our choice, the paper names neither. Give --config.model.text_weights=FOLDER.
    """
    config = ijepa(
        encoder,
        patch_size,
        images=images,
        epochs=epochs,
        warmup_epochs=warmup_epochs,
        predictor_depth=predictor_depth,
    )
    config.model.conditioner = "word_cross_attention"
    config.model.text = "t5"
    config.objective.prediction = "l2_norm"
    return config
