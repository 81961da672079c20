"""TC-JEPA, ViT-L/16 on captioned ImageNet-1k.

  python -m launch.train --config=configs/tc_jepa_in1k_l16.py --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_in1k_l16

Global batch 2,048, 600 epochs. The paper: 79.6 % by linear probe on ImageNet-1k (I-JEPA 77.5, StoP 78.5).
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("large", 16, images=recipes.IMAGENET_1K, epochs=600, warmup_epochs=15)
