"""I-JEPA, ViT-H/16 on ImageNet-1k at 448 px, as released (configs/in1k_vith16-448_ep300.yaml).

  python -m launch.train --config=configs/ijepa_in1k_h16_448.py --config.data.path=DATA \\
    --workdir=runs/ijepa_in1k_h16_448

Global batch 2,048, 300 epochs. Its paper: 87.1 % fine-tuned on ImageNet-1k.
"""

from configs import recipes


def get_config():
    return recipes.ijepa(
        "huge", 16, images=recipes.IMAGENET_1K, epochs=300, warmup_epochs=40, image_size=448, images_per_gpu=16
    )
