"""TC-JEPA on one's own captioned photographs with a small ViT, to see it work on a CPU or to start from on a GPU.

  python -m launch.prepare_data --source=folder --images=DIR --captions=FILE.jsonl \\
    --vocabulary=spiece.model --output=DATA
  python -m launch.train --config=configs/photos_tiny.py --config.data.path=DATA --workdir=runs/photos

Photographs of any size are cropped to 64 px: 8 x 8 patches. 1,000 steps read 64,000 crops; give train.steps more where
there is time. objective.anti_collapse.participation, a low first learning rate and a long warm-up keep many directions
of the features in so short a run. tc_jepa/methods/README.md has scores.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.train.steps = 1000
    config.train.batch_size = 64
    config.train.checkpoint_every = config.train.eval_every = 250
    config.image.size = 64
    config.captions.per_image = 4
    config.captions.words = config.evaluation.words = 24
    config.masking.context_tokens = 30
    config.masking.min_context = 8
    config.model.encoder = "nano"
    config.model.patch_size = 8
    config.model.predictor.width = 64
    config.model.predictor.depth = 3
    config.model.text_width = 64
    config.model.dtype = "float32"
    config.model.init_std = 0.05
    config.objective.anti_collapse.participation = 2.0
    config.objective.warmup_steps = 300
    config.optimizer.warmup_steps = 300
    config.optimizer.start_learning_rate = 1e-4
    return config
