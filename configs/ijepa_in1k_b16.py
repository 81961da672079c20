"""I-JEPA, ViT-B/16 on ImageNet-1k, as in its paper; no configuration was released.

  python -m launch.train --config=configs/ijepa_in1k_b16.py --config.data.path=DATA --workdir=runs/ijepa_in1k_b16

Global batch 2,048, 600 epochs. Its paper: 72.9 % by linear probe on ImageNet-1k.
"""

from configs import recipes


def get_config():
    return recipes.ijepa("base", 16, images=recipes.IMAGENET_1K, epochs=600, warmup_epochs=15, predictor_depth=6)
