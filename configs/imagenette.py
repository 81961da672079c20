"""Five methods on Imagenette at equal time: 20 minutes on one CPU core each, without captions.

  python -m launch.prepare_data --source=imagefolder --images=imagenette2-160 --output=data/imagenette
  python -m launch.train --config=configs/imagenette.py:lejepa --config.data.path=data/imagenette --workdir=runs/lejepa
  python -m launch.train --config=configs/imagenette.py:student --teacher=configs/imagenette.py:teacher \\
    --config.data.path=data/imagenette --teacher.data.path=data/imagenette --workdir=runs/salt
  python -m launch.evaluate --encoder=runs/lejepa

imagenette2-160 is unpacked from https://github.com/fastai/imagenette: 9,469 train and 3,925 val photographs of 10
classes, in train/CLASS and val/CLASS. tc_jepa/methods/README.md has scores. They were measured on copies with 96 px on
the short side instead of 160.

The encoder is a ViT of 0.82 M parameters that sees 64 px in 8 x 8 patches; batches have 64 images. STEPS take about 20
minutes on one core of the machine on which they were timed, at 62 (LeJEPA), 78 (I-JEPA), 89 (pixels) and 117 (with
labels) images/s. The two stages of SALT (arXiv 2509.24317), teacher and student, have 10 minutes each.

LeJEPA has the colours, slices, output channels, learning rate and weight decay of lejepa MINIMAL.md, which trains a
ViT-S/8 at 128 px on 4 views and batches of 256 for 800 epochs with lambda 0.02. SIGReg is proportional to the batch
size, so lambda is four times as large here. Initial weights are wider than for large ViTs (models/layers.py, Linear).
"""

from configs import base
from tc_jepa.errors import UserError

STEPS = {"lejepa": 1125, "ijepa": 1415, "pixels": 1615, "teacher": 800, "student": 730, "supervised": 2190}


def get_config(method="lejepa"):
    if method not in STEPS:
        raise UserError(f"configs/imagenette.py:{method}: the methods are {', '.join(STEPS)}", about="config")
    config = base.get_config()
    config.train.batch_size = 64
    config.train.steps = STEPS[method]
    config.train.eval_every = config.train.checkpoint_every = 500
    config.image.size = 64
    config.image.flip = True
    config.model.encoder = "nano"
    config.model.patch_size = 8
    config.model.dtype = "float32"
    config.model.init_std = 0.05
    config.evaluation.train_examples = 9469
    config.evaluation.test_examples = 3925
    config.optimizer.warmup_steps = 300
    config.optimizer.start_learning_rate = 1e-4
    if method == "lejepa":
        return _lejepa(config)
    if method == "supervised":
        config.method.name = "supervised"
        return config
    config.model.conditioner = "none"
    config.model.predictor.width = 64
    config.model.predictor.depth = 3
    config.masking.context_tokens = 30
    config.masking.min_context = 8
    if method in ("pixels", "teacher"):
        config.target_encoder.kind = "pixels"
        config.objective.prediction = "mse"
    if method == "student":
        config.target_encoder.kind = "frozen"
    return config


def _lejepa(config):
    config.method.name = "lejepa"
    config.image.crop_scale = (0.2, 1.0)
    config.lejepa.views = 2
    config.lejepa.weight = 0.08
    config.lejepa.slices = 256
    config.lejepa.projector.width = 256
    config.lejepa.projector.output = 16
    config.lejepa.brightness = config.lejepa.contrast = config.lejepa.saturation = 0.8
    config.lejepa.hue = 0.2
    config.optimizer.warmup_steps = 147  # an epoch
    config.optimizer.start_learning_rate = 2e-5
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-6
    config.optimizer.start_weight_decay = config.optimizer.final_weight_decay = 0.05
    return config
