"""I-JEPA, ViT-H/14 on ImageNet-22k, as released (configs/in22k_vith14_ep66.yaml).

  python -m launch.train --config=configs/ijepa_in22k_h14.py --config.data.path=DATA --workdir=runs/ijepa_in22k_h14

Global batch 2,048, 66 epochs.
"""

from configs import recipes


def get_config():
    return recipes.ijepa("huge", 14, images=recipes.IMAGENET_22K, epochs=66, warmup_epochs=3)
