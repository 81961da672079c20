"""TC-JEPA on the embedded captioned scenes, for two CPU cores: the README's first command.

  python -m launch.train --config=configs/scenes_standard.py --workdir=runs/scenes_standard

6 x 6 patches, an encoder of 0.83 M parameters, 80,000 images. What differs from the paper's recipe, and why: the run is
short, so the target encoder follows faster (momentum 0.99), and crops keep more of a scene (0.5 to 1), whose objects
span one or two patches; the networks are narrow, so kernels begin wider (models/layers.py, Linear); and the
regularisers come in over the first 1,000 steps: from the start at full weight they push nearly every cosine below zero,
where they and their gradients vanish, before attention has formed.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.train.steps = 2500
    config.train.batch_size = 32
    config.train.log_every = 50
    config.train.checkpoint_every = 500
    config.train.eval_every = 625
    config.image.size = 60
    config.image.crop_scale = (0.5, 1.0)
    config.captions.per_image = 2
    config.captions.words = config.evaluation.words = 20
    config.masking.context_tokens = 12
    config.masking.min_context = 6
    config.model.encoder = "nano"
    config.model.patch_size = 10
    config.model.dtype = "float32"
    config.model.init_std = 0.05
    config.model.predictor.width = 64
    config.model.predictor.depth = 2
    config.model.text_width = 64
    config.objective.warmup_steps = 1000
    config.optimizer.warmup_steps = 300
    config.target_encoder.start_momentum = 0.99
    config.evaluation.train_examples = 10_000
    return config
