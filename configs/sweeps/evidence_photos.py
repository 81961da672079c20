"""Do the words matter on photographs? With them, without, and with wrong ones: 9 runs for two CPU cores.

  python -m launch.sweep --sweep=configs/sweeps/evidence_photos.py --set=data.path=DATA --set=evaluation.data=PROBE \\
    --workdir=runs/evidence_photos

DATA is prepared photographs with splits train and val, PROBE their val images labelled by words (launch.word_labels).
At the quickstart's size: 72 px, 6 x 6 patches, learned word vectors, 38,400 crops.
"""

from configs.sweeps import Sweep

VARIANTS = {"words": {}, "none": {"model.conditioner": "none"}, "shuffled": {"captions.shuffled": True}}


def get_sweep() -> Sweep:
    settings = {
        "train.steps": 1200,
        "train.eval_every": 400,
        "objective.warmup_steps": 480,
        "optimizer.warmup_steps": 150,
        "image.size": 72,
        "model.patch_size": 12,
        "image.crop_scale": (0.3, 1.0),
        "captions.per_image": 4,
        "captions.words": 24,
    }
    return Sweep("configs/quickstart.py", settings, VARIANTS, seeds=(0, 1, 2), baseline="none")
