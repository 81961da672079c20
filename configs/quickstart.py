"""TC-JEPA on the embedded captioned scenes, for two CPU cores."""

from configs import base


def get_config():
    config = base.get_config()
    config.train.steps = 600
    config.train.batch_size = 128
    config.train.log_every = 20
    config.train.checkpoint_every = 200
    config.train.eval_every = 150
    config.image.size = 64
    config.captions.per_image = 4
    config.captions.words = 20
    config.masking.context_tokens = 24
    config.model.encoder = "nano"
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.model.predictor.width = 64
    config.model.predictor.depth = 3
    config.model.text_width = 64
    config.optimizer.warmup_steps = 60
    config.target_encoder.start_momentum = 0.98
    return config
