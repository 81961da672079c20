"""What the paper leaves open, one choice at a time, on crowded scenes, for two CPU cores.

  python -m launch.sweep --sweep=configs/sweeps/choices.py:screened --workdir=runs/choices_screened
  python -m launch.sweep --sweep=configs/sweeps/choices.py:seeds --workdir=runs/choices_seeds

screened: 17 runs with one seed, 40 % as long as evidence.py:scenes. One seed shows only what is larger than the spread
over seeds there.
seeds: 15 runs, with three seeds, of the choices whose effect in `screened` is larger than that spread.
"""

from configs.sweeps import Sweep

VARIANTS = {
    "default": {},
    "no_post_norm": {"conditioner.post_norm": False},
    "no_regulariser": {"objective.sparsity": 0.0, "objective.consistency": 0.0},
    "no_warmup": {"objective.warmup_steps": 0},
    "entropy": {"objective.regulariser": "entropy"},
    "no_target_norm": {"target_encoder.normalise": "none"},
    "smooth_l1": {"objective.prediction": "smooth_l1"},
    "fuse_first": {"conditioner.fuse_first": True},
    "captions_8": {"captions.per_image": 8},
    "captions_1": {"captions.per_image": 1},
    "context_12": {"masking.context_tokens": 12},
    "official_masks": {"masking.kind": "official", "masking.min_context": 3},
    "mlp_ratio_4": {"conditioner.mlp_ratio": 4.0},
    "regulariser_x2.5": {"objective.sparsity": 0.25, "objective.consistency": 1.25},
    "entropy_no_warmup": {"objective.regulariser": "entropy", "objective.warmup_steps": 0},
    "captions_2": {"captions.per_image": 2},
    "mse": {"objective.prediction": "mse"},
}

SETTINGS = {
    "train.steps": 800,
    "train.eval_every": 400,
    "objective.warmup_steps": 320,
    "optimizer.warmup_steps": 120,
    "evaluation.dense_examples": 500,
    "evaluation.test_examples": 1000,
}
SEEDED = {name: VARIANTS[name] for name in ("default", "captions_8", "context_12", "smooth_l1", "mse")}
SWEEPS = {
    "screened": Sweep("configs/scenes_hard.py", SETTINGS, VARIANTS, seeds=(0,)),
    "seeds": Sweep("configs/scenes_hard.py", SETTINGS, SEEDED, seeds=(0, 1, 2), baseline="default"),
}
