"""Do captions help? TC-JEPA against itself without captions, with wrong ones, and against StoP.

  python -m launch.sweep --sweep=configs/sweeps/evidence.py:yfcc15m --set=data.path=DATA \\
    --set=model.text_weights=T5 --workdir=runs/evidence
  python -m launch.sweep --sweep=configs/sweeps/evidence.py:scenes --workdir=runs/evidence_scenes
  python -m launch.sweep --sweep=configs/sweeps/evidence.py:photos --set=data.path=DATA --set=evaluation.data=PROBE \\
    --workdir=runs/evidence_photos
  python -m launch.sweep --sweep=configs/sweeps/evidence.py:photos_stored --set=data.path=DATA \\
    --set=captions.vectors=VECTORS --set=evaluation.data=PROBE --workdir=runs/evidence_photos_stored

Steps, data order, crops and masks are the same for a seed, whatever the variant. `shuffled` gets the captions of
another image of the batch: all of TC-JEPA's computation, none of its information. `stop` is the paper's second
baseline, with sigma 0.25.

yfcc15m: 12 runs at the paper's smallest size, ViT-B/16 on captioned YFCC15M.
scenes: 12 runs on crowded scenes, for two CPU cores.
photos: 9 runs on photographs, for two CPU cores. DATA is prepared photographs with splits train and val, PROBE their
  val images labelled by words (launch.word_labels). At the size of scenes_standard.py: 72 px, 6 x 6 patches, learned
  word vectors, 38,400 crops.
photos_stored: 9 runs like `photos`, with the word vectors of a frozen encoder that has read far more than these
  captions. Are the vectors of `photos`, learned from 38,400 crops, the reason why captions are not used?
  `no_regulariser` asks the same of the regularisers. The run without captions is the one of `photos`.
"""

from configs.sweeps import Sweep

WORDS, NONE, SHUFFLED = {}, {"model.conditioner": "none"}, {"captions.shuffled": True}
UNREGULARISED = {"objective.sparsity": 0.0, "objective.consistency": 0.0}
PHOTO_VARIANTS = {"words": WORDS, "none": NONE, "shuffled": SHUFFLED}
VARIANTS = PHOTO_VARIANTS | {"stop": NONE | {"model.position_noise": 0.25}}
STORED_VARIANTS = {"words": WORDS, "shuffled": SHUFFLED, "no_regulariser": UNREGULARISED}
PHOTOS = {
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
STORED = PHOTOS | {"model.text": "stored"}
SEEDS = (0, 1, 2)
SWEEPS = {
    "yfcc15m": Sweep("configs/paper.py:tc_jepa_yfcc15m_b16", {}, VARIANTS, SEEDS, baseline="none"),
    "scenes": Sweep("configs/scenes_hard.py", {}, VARIANTS, SEEDS, baseline="none"),
    "photos": Sweep("configs/scenes_standard.py", PHOTOS, PHOTO_VARIANTS, SEEDS, baseline="none"),
    "photos_stored": Sweep("configs/scenes_standard.py", STORED, STORED_VARIANTS, SEEDS, baseline="shuffled"),
}
