"""Captioned scenes, drawn on the fly: coloured shapes on a textured background.

A scene is a pure function of (seed, split, index). Its geometry is stored in fractions of the image, so that a scene is
the same at every image size; pictures, labels, masks and captions are all computed from that geometry.
"""

import colorsys
import dataclasses
import math
import operator
import random
from typing import Any, ClassVar

import cv2
import numpy as np

from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.scenes import captions as scene_captions
from tc_jepa.data.scenes.drawing import contours, draw, draw_instances, draw_mask, REACH, SHIFT
from tc_jepa.data.scenes.scene import Background, BACKGROUNDS, COLOURS, LEVELS, Scene, SceneObject, SHAPES, TEXTURES
from tc_jepa.data.sources import Example, LabelSet, Phrase, SCENES, SPLITS, TEST, TRAIN, VALIDATION
from tc_jepa.errors import UserError

PAIRS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

RADII = {"small": (0.085, 0.105), "large": (0.145, 0.185)}  # of the image; far apart, so that the two words are clear
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
HELD_OUT_SCENES = 10_000  # each of validation and test; only those that are read are drawn


def random_scene(rng: random.Random, level: str) -> Scene:
    """A scene with a random number of objects, of which a share stays visible: both as LEVELS[level] says."""
    fewest, most, least_visible = LEVELS[level]
    layout = np.zeros((LAYOUT_SIZE, LAYOUT_SIZE), np.uint8)  # 1 + index of the object that is visible there
    objects, areas, visible, covers = [], [], [], []  # areas and visible in pixels of the layout
    for _ in range(rng.randint(fewest, most)):
        sketch = _random_object(rng)
        margin = REACH * sketch.radius
        for _ in range(PLACEMENT_TRIES):
            placed = sketch._replace(x=rng.uniform(margin, 1 - margin), y=rng.uniform(margin, 1 - margin))
            trial = cv2.fillPoly(layout.copy(), contours(placed, LAYOUT_SIZE), len(objects) + 1, shift=SHIFT)
            *left, own = np.bincount(trial.ravel(), minlength=len(objects) + 2)[1:].tolist()
            if all(seen >= least_visible * area for seen, area in zip(left, areas)):
                hidden = [(before - seen) / area for before, seen, area in zip(visible, left, areas)]
                covers += [(len(objects), back) for back, part in enumerate(hidden) if part >= CLEARLY_COVERED]
                layout, visible = trial, [*left, own]
                areas.append(own)
                objects.append(placed)
                break
    return Scene(_random_background(rng), tuple(objects), tuple(covers))


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """`count` scenes of one split as a sources.Source, drawn `size` pixels wide and high; nothing is stored.

    `level` is one of LEVELS. Raises UserError for an unknown split or level, or a count or size below 1.
    """

    seed: int
    split: str
    count: int
    size: int
    level: str = "standard"

    segmentations: ClassVar = {"shape": ("background", *SHAPES), "colour": ("background", *COLOURS)}

    def __post_init__(self):
        for kind, given, known in (("level", self.level, LEVELS), ("split", self.split, SPLITS)):
            if given not in known:
                raise UserError(f"scenes have no {kind} {given!r}: choose one of {', '.join(known)}")
        if self.count < 1 or self.size < 1:
            raise UserError(f"scenes need a count and a size of at least 1, not count={self.count}, size={self.size}")

    @property
    def tasks(self) -> dict[str, LabelSet]:
        return {
            "shape": LabelSet("multi", SHAPES),
            "colour": LabelSet("multi", COLOURS),
            "pair": LabelSet("multi", PAIRS),
            "count": LabelSet("single", LEVELS[self.level].counts),
            "background": LabelSet("single", BACKGROUNDS),
        }

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        scene = self.scene(index)
        return Example(draw(scene, self.size), scene_captions.captions(scene, self._rng(index, "captions")))

    def scene(self, index: int) -> Scene:
        """The geometry of scene `index`. Raises IndexError outside 0 <= index < len(self)."""
        return random_scene(self._rng(index, "scene"), self.level)

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """ "shape", "colour", "pair": bool [classes]; "count", "background": int, the class's index."""
        scene = self.scene(index)
        return {
            "shape": np.isin(SHAPES, [item.shape for item in scene.objects]),
            "colour": np.isin(COLOURS, [item.colour for item in scene.objects]),
            "pair": np.isin(PAIRS, [f"{item.colour} {item.shape}" for item in scene.objects]),
            "count": len(scene.objects) - 1,
            "background": BACKGROUNDS.index(scene.background.pattern),
        }

    def file(self, index: int) -> str:
        return f"{self.split}/{index}"

    def mask(self, index: int, name: str = "shape") -> np.ndarray:
        """uint8 [size, size] of class indices: 0 is background, 1 + the index in SHAPES or COLOURS elsewhere."""
        return draw_mask(self.scene(index), self.size, name)

    def phrases(self, index: int) -> list[Phrase]:
        """One for every shape and every colour that only one object has: "a red star", with that word."""
        scene = self.scene(index)
        instances = draw_instances(scene, self.size)
        phrases = []
        for kind in ("shape", "colour"):
            words = [getattr(item, kind) for item in scene.objects]
            for i, (item, word) in enumerate(zip(scene.objects, words)):
                if words.count(word) == 1:
                    phrases.append(Phrase(scene_captions.name_with_article(item), word, kind, instances == 1 + i))
        return phrases

    def objects_mask(self, index: int) -> np.ndarray:
        """bool [size, size]: where any object is visible."""
        return draw_instances(self.scene(index), self.size) > 0

    def _rng(self, index: int, purpose: str) -> random.Random:
        # Python's generator: a scene takes some hundred single draws, each several times slower with NumPy's.
        # The string is hashed (SHA-512), so no two splits, indices or purposes share a stream.
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return random.Random(f"{self.seed} {self.split} {operator.index(index)} {purpose}")


@dataclasses.dataclass(frozen=True)
class ScenesDataset:
    """Captioned scenes as a sources.Dataset. Nothing is stored: each scene is drawn when it is read."""

    size: int = 64  # side of the images in pixels
    train_scenes: int = 1_000_000
    seed: int = 0  # selects the scenes
    level: str = "standard"  # one of LEVELS
    name: ClassVar[str] = SCENES

    def splits(self) -> dict[str, int]:
        return {TRAIN: self.train_scenes, VALIDATION: HELD_OUT_SCENES, TEST: HELD_OUT_SCENES}

    def open(self, split: str) -> SceneSource:
        """Raises UserError for an unknown split or level, and for a size or number of scenes below 1."""
        return SceneSource(self.seed, split, self.splits().get(split, 1), self.size, self.level)

    def vocabulary_path(self) -> str:
        return scenes_vocabulary_path()

    def identity(self) -> dict[str, Any]:
        return {"name": SCENES} | dataclasses.asdict(self)


def _random_object(rng: random.Random) -> SceneObject:
    size, colour = rng.choice(tuple(RADII)), rng.choice(COLOURS)
    hue, saturation, value = HSV[colour]
    hue, saturation, value = hue + rng.uniform(-6, 6), saturation * rng.uniform(0.9, 1), value * rng.uniform(0.9, 1)
    return SceneObject(
        shape=rng.choice(SHAPES),
        colour=colour,
        size=size,
        texture=rng.choice(TEXTURES),
        x=0.5,
        y=0.5,
        radius=rng.uniform(*RADII[size]),
        angle=rng.uniform(-TURN, TURN),
        rgb=_rgb(hue, saturation, value),
        stripe_angle=rng.uniform(0, math.pi),
    )


def _random_background(rng: random.Random) -> Background:
    hue, contrast = rng.uniform(0, 360), rng.uniform(0.14, 0.24)
    value = rng.uniform(0.35, 0.85 - contrast)
    colours = [_rgb(hue + rng.uniform(-30, 30), rng.uniform(0.05, 0.22), value + lift) for lift in (0, contrast)]
    return Background(
        pattern=rng.choice(BACKGROUNDS),
        rgb=tuple(colours),
        cycles=rng.uniform(4, 7),
        angle=rng.uniform(0, math.pi),
        phase=(rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)),
        grain=rng.getrandbits(32),
    )


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))
