"""Do the words matter? TC-JEPA against itself without words, with wrong words, and StoP, on crowded scenes: 12 runs.

  python -m launch.sweep --sweep=configs/sweeps/evidence_scenes.py --workdir=runs/evidence_scenes

Equal steps, data order, crops and masks for a seed, whatever the variant. `shuffled` gets the captions of another image
of the batch: all of TC-JEPA's computation, none of its information. `stop` is the paper's second baseline with
sigma 0.25.
"""

from configs.sweeps import Sweep

VARIANTS = {
    "words": {},
    "none": {"model.conditioner": "none"},
    "shuffled": {"captions.shuffled": True},
    "stop": {"model.conditioner": "none", "model.position_noise": 0.25},
}


def get_sweep() -> Sweep:
    return Sweep("configs/scenes_hard.py", {}, VARIANTS, seeds=(0, 1, 2), baseline="none")
