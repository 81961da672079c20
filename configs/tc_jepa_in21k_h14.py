"""TC-JEPA, ViT-H/14 on captioned ImageNet-21k.

  python -m launch.train --config=configs/tc_jepa_in21k_h14.py --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_in21k_h14

Global batch 2,048; epochs are counted as ImageNet-1k's, as in the paper: 900.
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("huge", 14, images=recipes.IMAGENET_1K, epochs=900, warmup_epochs=40)
