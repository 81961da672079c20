"""The labels of a scene."""

import numpy as np

from tc_jepa.data.scenes.scene import BACKGROUNDS, COLOURS, Level, NUMBERS, Scene, SHAPES
from tc_jepa.data.sources import LabelSet

PAIRS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)


def label_sets(level: Level) -> dict[str, LabelSet]:
    return {
        "shape": LabelSet("multi", SHAPES),
        "colour": LabelSet("multi", COLOURS),
        "pair": LabelSet("multi", PAIRS),
        "count": LabelSet("single", level.counts),
        "background": LabelSet("single", BACKGROUNDS),
    }


def labels(scene: Scene, level: Level) -> dict[str, int | np.ndarray]:
    """ "shape", "colour", "pair": bool [classes]; "count", "background": int, the class's index."""
    return {
        "shape": np.isin(SHAPES, [item.shape for item in scene.objects]),
        "colour": np.isin(COLOURS, [item.colour for item in scene.objects]),
        "pair": np.isin(PAIRS, [f"{item.colour} {item.shape}" for item in scene.objects]),
        "count": level.counts.index(NUMBERS[len(scene.objects)]),
        "background": BACKGROUNDS.index(scene.background.pattern),
    }
