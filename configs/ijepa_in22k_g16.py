"""I-JEPA, ViT-g/16 on ImageNet-22k, as released (configs/in22k_vitg16_ep44.yaml).

  python -m launch.train --config=configs/ijepa_in22k_g16.py --config.data.path=DATA --workdir=runs/ijepa_in22k_g16

Global batch 2,048, 44 epochs.
"""

from configs import recipes


def get_config():
    return recipes.ijepa("giant", 16, images=recipes.IMAGENET_22K, epochs=44, warmup_epochs=3, predictor_depth=16)
