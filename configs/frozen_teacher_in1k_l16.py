"""I-JEPA with a frozen teacher in place of the EMA: a ViT-L/16 that predicts the features of a smaller ViT-B/16.

  python -m launch.train --config=configs/frozen_teacher_in1k_l16.py --config.data.path=DATA \\
    --config.target_encoder.teacher=runs/pixels_in1k_b16 --workdir=runs/frozen_teacher_in1k_l16

Second stage of "Rethinking JEPA" (arXiv 2509.24317, there for video), which finds that good students grow from small
teachers. Global batch 2,048, 300 epochs, our choice. The student is what launch.evaluate judges.
"""

from configs import paper


def get_config():
    config = paper.ijepa(paper.Recipe("large", 16, paper.IMAGENET_1K, epochs=300, warmup_epochs=15))
    config.target_encoder.kind = "frozen"
    return config
