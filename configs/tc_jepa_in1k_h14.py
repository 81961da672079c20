"""TC-JEPA, ViT-H/14 on captioned ImageNet-1k.

  python -m launch.train --config=configs/tc_jepa_in1k_h14.py --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_in1k_h14

Global batch 2,048, 300 epochs. The paper: 80.4 % by linear probe on ImageNet-1k (I-JEPA 79.3, StoP 79.6).
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("huge", 14, images=recipes.IMAGENET_1K, epochs=300, warmup_epochs=40)
