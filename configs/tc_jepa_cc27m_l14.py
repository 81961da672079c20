"""TC-JEPA, ViT-L/14 on CC27M (CC12M and YFCC15M) with generated captions and the raw one.

  python -m launch.train --config=configs/tc_jepa_cc27m_l14.py --config.data.path=CC12M,YFCC15M \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_cc27m_l14

Global batch 2,048, 50 epochs. The paper: 81.9 % by linear probe on ImageNet-1k, 58.0 AP on COCO, 58.8 mIoU fine-tuned
on ADE20k.
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("large", 14, images=recipes.CC27M, epochs=50, warmup_epochs=10)
