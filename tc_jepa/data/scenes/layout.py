"""Random scenes: which objects there are, where they lie, and what the background is."""

import colorsys
import math
import random
from typing import NamedTuple

import cv2
import numpy as np

from tc_jepa.data.scenes.drawing import contours, REACH, SHIFT
from tc_jepa.data.scenes.scene import Background, BACKGROUNDS, COLOURS, Level, Scene, SceneObject, SHAPES, TEXTURES

TURN = math.radians(20)  # the largest rotation: a cross turned by 45 degrees would be another shape
HSV = {  # hue in degrees, saturation, value; with the jitter in _random_object, neighbours stay distinct
    "red": (0, 0.90, 0.85),
    "orange": (28, 0.95, 0.98),
    "yellow": (55, 0.90, 0.97),
    "green": (125, 0.80, 0.65),
    "cyan": (182, 0.80, 0.90),
    "blue": (225, 0.85, 0.85),
    "purple": (278, 0.75, 0.62),
    "pink": (330, 0.42, 1.00),
}
CLEARLY_COVERED = 0.1  # of an object's area, hidden by one other object: enough for "in front of" to be visible
PLACEMENT_TRIES = 20  # positions tried for an object before it is left out
LAYOUT_SIZE = 64  # pixels at which visibility is computed, whatever the image size


class Theme(NamedTuple):
    """What the objects of a scene, and its background, tend to have in common."""

    shape: str
    colour: str
    pattern: str


def random_scene(rng: random.Random, level: Level) -> Scene:
    """A scene with a random number of objects, of which a share stays visible."""
    layout = np.zeros((LAYOUT_SIZE, LAYOUT_SIZE), np.uint8)  # 1 + index of the object that is visible there
    objects, areas, visible, covers = [], [], [], []  # areas and visible in pixels of the layout
    theme = _random_theme(rng) if level.agreement else None
    for _ in range(rng.randint(level.fewest, level.most)):
        sketch = _random_object(rng, level, theme)
        margin = REACH * sketch.radius
        for _ in range(PLACEMENT_TRIES):
            placed = sketch._replace(x=rng.uniform(margin, 1 - margin), y=rng.uniform(margin, 1 - margin))
            trial = cv2.fillPoly(layout.copy(), contours(placed, LAYOUT_SIZE), len(objects) + 1, shift=SHIFT)
            *left, own = np.bincount(trial.ravel(), minlength=len(objects) + 2)[1:].tolist()
            if all(seen >= level.least_visible * area for seen, area in zip(left, areas)):
                hidden = [(before - seen) / area for before, seen, area in zip(visible, left, areas)]
                covers += [(len(objects), back) for back, part in enumerate(hidden) if part >= CLEARLY_COVERED]
                layout, visible = trial, [*left, own]
                areas.append(own)
                objects.append(placed)
                break
    return Scene(_random_background(rng, level, theme), tuple(objects), tuple(covers), level.style)


def _random_theme(rng: random.Random) -> Theme:
    colour = rng.randrange(len(COLOURS))
    return Theme(rng.choice(SHAPES), COLOURS[colour], BACKGROUNDS[colour % len(BACKGROUNDS)])


def _drawn(rng: random.Random, values: tuple[str, ...], agreed: str | None, agreement: float) -> str:
    """One of `values`: the agreed one, if there is one, with the probability `agreement`, else any."""
    return agreed if agreed is not None and rng.random() < agreement else rng.choice(values)


def _random_object(rng: random.Random, level: Level, theme: Theme | None) -> SceneObject:
    size = rng.choice(tuple(level.radii))
    colour = _drawn(rng, COLOURS, theme and theme.colour, level.agreement)
    hue, saturation, value = HSV[colour]
    hue, saturation = hue + rng.uniform(-6, 6), saturation * rng.uniform(0.9, 1)
    value = value * rng.uniform(level.shade, 1)
    return SceneObject(
        shape=_drawn(rng, SHAPES, theme and theme.shape, level.agreement),
        colour=colour,
        size=size,
        texture=rng.choice(TEXTURES),
        x=0.5,
        y=0.5,
        radius=rng.uniform(*level.radii[size]),
        angle=rng.uniform(-TURN, TURN),
        rgb=_rgb(hue, saturation, value),
        stripe_angle=rng.uniform(0, math.pi),
    )


def _random_background(rng: random.Random, level: Level, theme: Theme | None) -> Background:
    hue, contrast = rng.uniform(0, 360), rng.uniform(*level.contrast)
    value = rng.uniform(0.35, 0.85 - contrast)
    colours = [_rgb(hue + rng.uniform(-30, 30), rng.uniform(*level.tint), value + lift) for lift in (0, contrast)]
    return Background(
        pattern=_drawn(rng, BACKGROUNDS, theme and theme.pattern, level.agreement),
        rgb=tuple(colours),
        cycles=rng.uniform(4, 7),
        angle=rng.uniform(0, math.pi),
        phase=(rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)),
        grain=rng.getrandbits(32),
    )


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))
