"""TC-JEPA, ViT-B/16 on CC27M (CC12M and YFCC15M) with generated captions and the raw one.

  python -m launch.train --config=configs/tc_jepa_cc27m_b16.py --config.data.path=CC12M,YFCC15M \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_cc27m_b16

Global batch 2,048, 50 epochs.
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("base", 16, images=recipes.CC27M, epochs=50, warmup_epochs=10, predictor_depth=6)
