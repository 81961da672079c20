"""The README's first command: a LeJEPA teacher on captioned scenes, then a TC-JEPA student that reads the captions.

  python -m launch.train --config=configs/quickstart.py:student --teacher=configs/quickstart.py:teacher \\
    --workdir=runs/quickstart
  python -m launch.evaluate --encoder=runs/quickstart --compare=runs/quickstart/teacher

In minutes on two CPU cores an encoder does not learn much from its own moving average (configs/sweeps/levers.py). Two
views of an image teach it sooner, and the student predicts what that teacher sees, in two stages as in "Rethinking
JEPA" (arXiv 2509.24317). Both have the encoder of scenes_spacious.py: 0.83 M parameters, 6 x 6 patches. The
teacher sees 32,000 scenes, the student 22,400. configs/README.md has the scores.
"""

from configs import base
from tc_jepa.errors import UserError

STAGES = ("teacher", "student")


def get_config(stage="teacher"):
    if stage not in STAGES:
        raise UserError(f"configs/quickstart.py:{stage}: the stages are {' and '.join(STAGES)}", about="config")
    config = base.get_config()
    config.train.batch_size = 32
    config.train.checkpoint_every = config.train.eval_every = 500
    config.data.scenes_level = "spacious"
    config.image.size = 60
    config.image.crop_scale = (0.5, 1.0)
    config.model.encoder = "nano"
    config.model.patch_size = 10
    config.model.dtype = "float32"
    config.model.init_std = 0.05
    config.optimizer.warmup_steps = 150
    config.evaluation.train_examples = 4000
    config.evaluation.test_examples = 5000
    if stage == "teacher":
        config.method.name = "lejepa"
        config.train.steps = 1000
        config.lejepa.views = 2
        config.lejepa.weight = 0.05
        config.lejepa.projector.width = 256
        config.lejepa.projector.output = 64
        return config
    config.train.steps = 700
    config.target_encoder.kind = "frozen"
    config.captions.per_image = 2
    config.captions.words = config.evaluation.words = 20
    config.masking.context_tokens = 12
    config.masking.min_context = 6
    config.model.predictor.width = 64
    config.model.predictor.depth = 2
    config.model.text_width = 64
    config.objective.warmup_steps = 300
    return config
