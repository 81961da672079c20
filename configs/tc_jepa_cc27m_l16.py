"""TC-JEPA, ViT-L/16 on CC27M (CC12M and YFCC15M) with generated captions and the raw one.

  python -m launch.train --config=configs/tc_jepa_cc27m_l16.py --config.data.path=CC12M,YFCC15M \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_cc27m_l16

Global batch 2,048, 50 epochs. The paper: 81.4 % by linear probe on ImageNet-1k, 91.2 % on CIFAR-100, 42.1 mIoU by a
linear layer on ADE20k.
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("large", 16, images=recipes.CC27M, epochs=50, warmup_epochs=10)
