"""A teacher for frozen_teacher_in1k_l16.py: ViT-B/16 on ImageNet-1k that reconstructs the pixels of hidden blocks.

  python -m launch.train --config=configs/pixels_in1k_b16.py --config.data.path=DATA --workdir=runs/pixels_in1k_b16

I-JEPA's masks and predictor, with a head that predicts pixels: mean squared error on patches with their own mean and
deviation taken out (first stage of "Rethinking JEPA", arXiv 2509.24317, there for video). Global batch 2,048, 300
epochs, our choice.
"""

from configs import paper


def get_config():
    recipe = paper.Recipe("base", 16, paper.IMAGENET_1K, epochs=300, warmup_epochs=15, predictor_depth=6)
    config = paper.ijepa(recipe)
    config.target_encoder.kind = "pixels"
    config.objective.prediction = "mse"
    return config
