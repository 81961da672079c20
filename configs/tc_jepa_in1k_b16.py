"""TC-JEPA, ViT-B/16 on captioned ImageNet-1k.

  python -m launch.train --config=configs/tc_jepa_in1k_b16.py --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_in1k_b16

Global batch 2,048, 600 epochs. The paper: 75.8 % by linear probe on ImageNet-1k (I-JEPA 72.9, StoP 74.5).
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("base", 16, images=recipes.IMAGENET_1K, epochs=600, warmup_epochs=15, predictor_depth=6)
