"""TC-JEPA on one's own captioned photographs with a small ViT, to see it work on a CPU or to start from on a GPU.

  python -m launch.prepare_data --source=folder --images=DIR --captions=FILE.jsonl \\
    --vocabulary=spiece.model --output=DATA
  python -m launch.train --config=configs/photos_tiny.py --config.data.path=DATA --workdir=runs/photos

Photographs of any size are cropped to 144 px: 9 x 9 patches.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.train.steps = 3000
    config.train.batch_size = 32
    config.train.log_every = 10
    config.train.checkpoint_every = 50
    config.train.eval_every = 100
    config.image.size = 144
    config.captions.per_image = 4
    config.captions.words = 24
    config.masking.context_tokens = 36
    config.model.encoder = "tiny"
    config.model.predictor.width = 96
    config.model.predictor.depth = 3
    config.model.text_width = 96
    config.model.dtype = "float32"
    config.model.init_std = 0.04
    config.objective.warmup_steps = 100
    config.optimizer.warmup_steps = 50
    config.target_encoder.start_momentum = 0.99
    return config
