"""I-JEPA, ViT-L/16 on ImageNet-1k, as in its paper; no configuration was released.

  python -m launch.train --config=configs/ijepa_in1k_l16.py --config.data.path=DATA --workdir=runs/ijepa_in1k_l16

Global batch 2,048, 600 epochs. Its paper: 77.5 % by linear probe on ImageNet-1k (Table 1; Table 13 says 77.8).
"""

from configs import recipes


def get_config():
    return recipes.ijepa("large", 16, images=recipes.IMAGENET_1K, epochs=600, warmup_epochs=15)
