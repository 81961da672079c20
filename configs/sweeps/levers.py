"""What might make an encoder learn in minutes: targets, regularisers, stems, masks, captions, and other objectives.

  python -m launch.sweep --sweep=configs/sweeps/levers.py --workdir=runs/levers

screened: 24 runs on spacious scenes with one seed, 16,000 scenes each, for two CPU cores. "supervised" is the ceiling.
The rest differ from "default", TC-JEPA as in scenes_spacious.py, or from "lejepa". One seed of so short a run shows
large differences only.
"""

from configs.sweeps import Sweep

# Two views cost about as much as a step of TC-JEPA, and narrow networks need a narrow projector. SIGReg is proportional
# to the batch size, 8 times smaller here than in lejepa MINIMAL.md, but lambda is only 2.5 times as large.
LEJEPA = {
    "method.name": "lejepa",
    "lejepa.views": 2,
    "lejepa.projector.width": 256,
    "lejepa.projector.output": 64,
    "lejepa.weight": 0.05,
}
NO_COLOURS = {f"lejepa.{name}_probability": 0.0 for name in ("jitter", "grey", "blur", "solarise")}
STRONG_COLOURS = {
    "lejepa.brightness": 0.8,
    "lejepa.contrast": 0.8,
    "lejepa.saturation": 0.8,
    "lejepa.hue": 0.3,
}

VARIANTS = {
    "default": {},
    "no_words": {"model.conditioner": "none"},
    "shuffled": {"captions.shuffled": True},
    "noise": {"captions.noise": 0.2},
    "unscaled": {"conditioner.scaled": False},
    "entropy": {"objective.regulariser": "entropy"},
    "targets_batch": {"target_encoder.normalise": "batch"},
    "targets_instance": {"target_encoder.normalise": "instance"},
    "participation": {"objective.anti_collapse.participation": 2.0},
    "vicreg": {"objective.anti_collapse.variance": 5.0, "objective.anti_collapse.covariance": 0.2},
    "sigreg": {"objective.anti_collapse.sigreg": 1.0},
    "online": {"target_encoder.kind": "online", "objective.anti_collapse.sigreg": 1.0},
    "pixels": {"target_encoder.kind": "pixels", "objective.prediction": "mse"},
    "blocks_8": {"masking.target_blocks": 8, "masking.target_scale": (0.06, 0.12)},
    "corrupted": {"image.context_corruption": 1.0},
    "noise_levels": {"model.position_noise": 0.25, "model.position_noise_levels": 4},
    "sqrt_rate": {"optimizer.batch_rule": "sqrt"},
    "fan_in": {"model.patch_init": "fan_in"},
    "conv": {"model.stem": "conv"},
    "lejepa": LEJEPA,
    "lejepa_no_colours": LEJEPA | NO_COLOURS,
    "lejepa_strong_colours": LEJEPA | STRONG_COLOURS,
    "lejepa_conv": LEJEPA | {"model.stem": "conv"},
    "supervised": {"method.name": "supervised", "supervised.tasks": ("shape", "colour", "count")},
}

SETTINGS = {
    "train.steps": 500,
    "train.checkpoint_every": 500,
    "train.eval_every": 250,
    "objective.warmup_steps": 200,
    "optimizer.warmup_steps": 100,
    "evaluation.train_examples": 2000,
    "evaluation.test_examples": 2000,
}
SWEEPS = {"screened": Sweep("configs/scenes_spacious.py", SETTINGS, VARIANTS, seeds=(0,), baseline="default")}
