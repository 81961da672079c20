"""TC-JEPA on crowded scenes of which little is seen: where words have something to say. For two CPU cores.

  python -m launch.train --config=configs/scenes_hard.py --workdir=runs/scenes_hard

scenes_standard.py, 64,000 images long, with 5 to 8 objects that hide each other, 4 captions, and a context of 8 of 36
patches at most: what is hidden cannot be guessed from what is seen, while the words tell it.
"""

from configs import scenes_standard


def get_config():
    config = scenes_standard.get_config()
    config.train.steps = 2000
    config.train.eval_every = 500
    config.data.scenes_level = "hard"
    config.captions.per_image = 4
    config.masking.context_tokens = 8
    config.evaluation.tasks = "knn,linear_fast,rank,segmentation,grounding"
    config.evaluation.train_examples = 4000
    config.evaluation.dense_examples = 800
    return config
