"""What the paper leaves open, one choice at a time, screened with one seed on crowded scenes: 17 runs.

  python -m launch.sweep --sweep=configs/sweeps/choices_scenes.py --workdir=runs/choices_scenes

40 % of evidence_scenes' length. One seed tells only what is larger than the spread over seeds there.
"""

from configs.sweeps import Sweep

VARIANTS = {
    "default": {},
    "no_post_norm": {"conditioner.post_norm": False},
    "no_regulariser": {"objective.sparsity": 0.0, "objective.consistency": 0.0},
    "no_warmup": {"objective.warmup_steps": 0},
    "entropy": {"objective.regulariser": "entropy"},
    "no_target_norm": {"target_encoder.normalise": False},
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


def get_sweep() -> Sweep:
    settings = {
        "train.steps": 800,
        "train.eval_every": 400,
        "objective.warmup_steps": 320,
        "optimizer.warmup_steps": 120,
        "evaluation.dense_examples": 500,
        "evaluation.test_examples": 1000,
    }
    return Sweep("configs/scenes_hard.py", settings, VARIANTS, seeds=(0,))
