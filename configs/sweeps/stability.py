"""Is training stable, with words and without? Learning rates and sizes of target blocks, each with three seeds.

  python -m launch.sweep --sweep=configs/sweeps/stability.py --workdir=runs/stability

Stable training is one of the claims of the paper (arXiv 2605.03245).

crossed: 36 runs on spacious scenes, 8,000 scenes each, for two CPU cores. A run that collapses has low scores.
"""

from configs.sweeps import Sweep

RATES = (5e-4, 2e-3, 8e-3)
SCALES = {"small": (0.15, 0.2), "large": (0.3, 0.4)}
WORDS = {"words": {}, "none": {"model.conditioner": "none"}}

VARIANTS = {
    f"{words}_{rate:g}_{scale}": {
        **settings,
        "optimizer.peak_learning_rate": rate,
        "optimizer.start_learning_rate": rate / 5,
        "masking.target_scale": area,
    }
    for scale, area in SCALES.items()
    for rate in RATES
    for words, settings in WORDS.items()
}
SETTINGS = {
    "train.steps": 250,
    "train.checkpoint_every": 250,
    "train.eval_every": 250,
    "optimizer.warmup_steps": 50,
    "evaluation.tasks": "knn,linear_fast",
    "evaluation.train_examples": 1000,
    "evaluation.test_examples": 1000,
}
SWEEPS = {"crossed": Sweep("configs/scenes_spacious.py", SETTINGS, VARIANTS, seeds=(0, 1, 2))}
