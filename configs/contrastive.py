"""CLIP, SigLIP and SPARC on YFCC15M, by name: the baselines of TC-JEPA as pretraining with text.

  python -m launch.train --config=configs/contrastive.py:siglip_yfcc15m_b16 --config.data.path=DATA \\
    --config.captions.vocabulary=spiece.model --workdir=runs/siglip

With the encoder and the crops of tc_jepa_yfcc15m_b16 (configs/paper.py): no class token, no flips, no changes of
colour. Global batch 32,768, 32 epochs. tc_jepa/methods/README.md lists what differs from the papers.

CLIP: Radford et al. 2021 (arXiv 2103.00020), tables 18 and 19, for ViT-B/16: learning rate 5e-4 after 2,000 steps of
warm-up, weight decay 0.2, beta2 0.98, epsilon 1e-6, a text tower of 12 blocks with 512 channels and 8 heads.
SigLIP: Zhai et al. 2023 (arXiv 2303.15343): learning rate 1e-3, weight decay 1e-4, beta2 0.95, a text tower as large as
the encoder that reads 64 words, scale 10 and bias -10 at the start. It was trained with Adafactor on other data; AdamW
here.
SPARC: Bica et al. 2024 (arXiv 2401.09865) for the loss; the recipe is CLIP's, and fine_weight is not the paper's.
"""

from configs import base
from configs.paper import YFCC15M
from tc_jepa.errors import UserError

LOSSES = {"clip_yfcc15m_b16": "clip", "siglip_yfcc15m_b16": "siglip", "sparc_yfcc15m_b16": "sparc"}
EPOCHS = 32


def get_config(name="clip_yfcc15m_b16"):
    if name not in LOSSES:
        raise UserError(f"configs/contrastive.py:{name}: the names are {', '.join(LOSSES)}", about="config")
    config = base.get_config()
    config.method.name = "contrastive"
    config.contrastive.loss = LOSSES[name]
    config.train.batch_size = 32_768
    config.train.steps = EPOCHS * YFCC15M // config.train.batch_size
    config.optimizer.start_learning_rate = config.optimizer.final_learning_rate = 0.0
    config.optimizer.warmup_steps = 2000
    if config.contrastive.loss == "siglip":
        config.captions.words = 64
        config.contrastive.width = config.contrastive.text_width = 768
        config.contrastive.text_heads = 12
        config.contrastive.scale = 10.0
        config.optimizer.peak_learning_rate = 1e-3
        config.optimizer.start_weight_decay = config.optimizer.final_weight_decay = 1e-4
        config.optimizer.beta2 = 0.95
        return config
    config.captions.words = 77
    config.optimizer.peak_learning_rate = 5e-4
    config.optimizer.start_weight_decay = config.optimizer.final_weight_decay = 0.2
    config.optimizer.beta2 = 0.98
    config.optimizer.epsilon = 1e-6
    return config
