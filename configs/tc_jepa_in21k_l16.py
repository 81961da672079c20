"""TC-JEPA, ViT-L/16 on captioned ImageNet-21k.

  python -m launch.train --config=configs/tc_jepa_in21k_l16.py --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_in21k_l16

Global batch 2,048; epochs are counted as ImageNet-1k's, as in the paper: 1,200. The paper: 82.1 % by linear probe on
ImageNet-1k, 91.6 % on CIFAR-100, 41.2 mIoU by a linear layer on ADE20k (I-JEPA 77.2, 88.7, 38.2).
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("large", 16, images=recipes.IMAGENET_1K, epochs=1200, warmup_epochs=15)
