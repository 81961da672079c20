"""LeJEPA on Imagenette at 96 px with a small ViT, for a laptop: views instead of masks, no captions.

  python -m launch.prepare_data --source=imagefolder --images=imagenette2-160 --output=data/imagenette
  python -m launch.train --config=configs/lejepa_imagenette.py --config.data.path=data/imagenette \\
    --workdir=runs/lejepa_imagenette
  python -m launch.evaluate --encoder=runs/lejepa_imagenette --tasks=knn,linear_fast,rank

imagenette2-160 is unpacked from https://github.com/fastai/imagenette: 9,469 train and 3,925 val photographs of 10
classes, in train/CLASS and val/CLASS.

Views, colours, 256 slices, 16 output channels, learning rate and weight decay are those of lejepa MINIMAL.md, which
trains a ViT-S/8 at 128 px on batches of 256 for 800 epochs with lambda 0.02. What differs is for two CPU cores: a ViT
of 0.85 M parameters on 8 x 8 patches, batches of 64, 40 epochs, 256 hidden channels in the projector, and wider initial
weights (models/layers.py, Linear). SIGReg is proportional to the batch size, so lambda is four times as large.
"""

from configs import base

TRAIN_IMAGES = 9_469


def get_config():
    config = base.get_config()
    config.method.name = "lejepa"
    config.train.batch_size = 64
    config.train.steps = 40 * (TRAIN_IMAGES // config.train.batch_size)
    config.train.eval_every = config.train.checkpoint_every = 500
    config.image.size = 96
    config.image.crop_scale = (0.08, 1.0)
    config.image.flip = True
    config.model.encoder = "nano"
    config.model.patch_size = 12
    config.model.dtype = "float32"
    config.model.init_std = 0.05
    config.lejepa.weight = 0.08
    config.lejepa.slices = 256
    config.lejepa.projector.width = 256
    config.lejepa.projector.output = 16
    config.lejepa.brightness = config.lejepa.contrast = config.lejepa.saturation = 0.8
    config.lejepa.hue = 0.2
    config.optimizer.warmup_steps = TRAIN_IMAGES // config.train.batch_size
    config.optimizer.start_learning_rate = 2e-5
    config.optimizer.peak_learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-6
    config.optimizer.start_weight_decay = config.optimizer.final_weight_decay = 0.05
    return config
