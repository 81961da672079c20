"""TC-JEPA, ViT-B/16 on YFCC15M with generated captions and the raw one.

  python -m launch.train --config=configs/tc_jepa_yfcc15m_b16.py --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_yfcc15m_b16

Global batch 2,048, 50 epochs. The paper: 77.1 % by linear probe on ImageNet-1k, 54.5 AP on COCO, 55.2 mIoU fine-tuned
on ADE20k (CLIP 66.5, 43.6, 47.8).
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("base", 16, images=recipes.YFCC15M, epochs=50, warmup_epochs=10, predictor_depth=6)
