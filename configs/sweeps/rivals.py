"""Tables 3 and 4 of the paper at laptop size: TC-JEPA beside methods with and without text, on equal images.

  python -m launch.sweep --sweep=configs/sweeps/rivals.py --workdir=runs/rivals
  python -m launch.sweep --sweep=configs/sweeps/rivals.py:photos --set=data.path=DATA --set=evaluation.data=PROBE \\
    --workdir=runs/rivals_photos

scenes: 18 runs with three seeds on spacious scenes, 16,000 scenes each, for two CPU cores. The encoder, the data, the
learning rates and the number of images are the same for all. The text tower of the contrastive methods has two blocks
of 128 channels, and their batches are those of the others, 32 images: far fewer negatives than in their papers.

equal_time: 18 runs like those of scenes, but of as many steps as three minutes on one core allow (STEPS_IN_TIME):
  TC-JEPA 144 images a second, I-JEPA 194, LeJEPA 104, CLIP 168, SigLIP and SPARC 162 (measured by 120 steps of each
  on 2026-11-30, the other core busy). Compilation and evaluation are not in the three minutes.
photos: 12 runs with two seeds on 64,000 crops of photographs in batches of 64, judged by words of captions. DATA is
  prepared photographs with splits train and val, PROBE their val images labelled by words (launch.word_labels): labels
  of train images would be words that training has read.
words: 6 runs of the same TC-JEPA, with the captions of the image and with those of another.
"""

from configs.sweeps import Sweep
from configs.sweeps.levers import LEJEPA

CONTRASTIVE = {
    "method.name": "contrastive",
    "contrastive.width": 128,
    "contrastive.text_width": 128,
    "contrastive.text_depth": 2,
    "contrastive.text_heads": 4,
}
VARIANTS = {
    "tc_jepa": {},
    "ijepa": {"model.conditioner": "none"},
    "lejepa": LEJEPA,
    "clip": CONTRASTIVE,
    "siglip": CONTRASTIVE | {"contrastive.loss": "siglip", "contrastive.scale": 10.0},
    "sparc": CONTRASTIVE | {"contrastive.loss": "sparc"},
}
SETTINGS = {
    "train.steps": 500,
    "train.checkpoint_every": 500,
    "train.eval_every": 250,
    "objective.warmup_steps": 200,
    "optimizer.warmup_steps": 100,
    "evaluation.tasks": "linear_fast,knn,segmentation,grounding,zero_shot,retrieval,rank",
    "evaluation.train_examples": 2000,
    "evaluation.dense_examples": 500,
    "evaluation.test_examples": 1000,
}
PHOTOS = {"evaluation.tasks": "linear_fast,knn,retrieval,rank"}
STEPS_IN_TIME = {"tc_jepa": 810, "ijepa": 1090, "lejepa": 585, "clip": 945, "siglip": 910, "sparc": 910}
IN_TIME = {
    name: own | {"train.steps": STEPS_IN_TIME[name], "train.checkpoint_every": STEPS_IN_TIME[name]}
    for name, own in VARIANTS.items()
}
WORDS = {"shuffled": {"captions.shuffled": True}, "true": {}}
SWEEPS = {
    "scenes": Sweep("configs/scenes_spacious.py", SETTINGS, VARIANTS, seeds=(0, 1, 2), baseline="ijepa"),
    "equal_time": Sweep("configs/scenes_spacious.py", SETTINGS, IN_TIME, seeds=(0, 1, 2), baseline="ijepa"),
    "photos": Sweep("configs/photos_tiny.py", PHOTOS, VARIANTS, seeds=(0, 1), baseline="ijepa"),
    "words": Sweep("configs/scenes_spacious.py", SETTINGS, WORDS, seeds=(0, 1, 2), baseline="shuffled"),
}
