"""TC-JEPA, ViT-L/16 on YFCC15M with generated captions and the raw one; the model of the paper's ablations.

  python -m launch.train --config=configs/tc_jepa_yfcc15m_l16.py --config.data.path=DATA \\
    --config.model.text_weights=T5 --workdir=runs/tc_jepa_yfcc15m_l16

Global batch 2,048, 50 epochs (paper Table 3, Fig. 10 to 12).
"""

from configs import recipes


def get_config():
    return recipes.tc_jepa("large", 16, images=recipes.YFCC15M, epochs=50, warmup_epochs=10)
