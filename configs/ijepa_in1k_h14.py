"""I-JEPA, ViT-H/14 on ImageNet-1k, as released (configs/in1k_vith14_ep300.yaml).

  python -m launch.train --config=configs/ijepa_in1k_h14.py --config.data.path=DATA --workdir=runs/ijepa_in1k_h14

Global batch 2,048, 300 epochs. Its paper: 79.3 % by linear probe on ImageNet-1k.
"""

from configs import recipes


def get_config():
    return recipes.ijepa("huge", 14, images=recipes.IMAGENET_1K, epochs=300, warmup_epochs=40)
