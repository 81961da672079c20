"""Captioned scenes, drawn on the fly: coloured shapes on a textured background.

A scene is a pure function of (seed, split, index). Its geometry is kept in fractions of the image, so that a scene is
the same at every image size; pictures, labels, masks, boxes and captions all read that one geometry.
"""

from collections.abc import Iterable
import colorsys
import dataclasses
import math
import operator
import random
from typing import ClassVar, NamedTuple

import cv2
import numpy as np

from tc_jepa.data.scenes import captions as scene_captions
from tc_jepa.data.scenes.outlines import REACH, UNIT_OUTLINES
from tc_jepa.data.sources import Example, Phrase, SPLITS, Task
from tc_jepa.errors import UserError

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("checked", "striped", "dotted", "gradient", "speckled", "cloudy")
PAIRS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

RADII = {"small": (0.085, 0.105), "large": (0.145, 0.185)}  # of the image; apart, so that the two words are clear
TEXTURES = ("plain", "striped")
TURN = math.radians(20)  # a cross turned by 45 degrees would be another sign
HSV = {  # hue in degrees, saturation, value; the jitter below keeps neighbours apart
    "red": (0, 0.90, 0.85),
    "orange": (28, 0.95, 0.98),
    "yellow": (55, 0.90, 0.97),
    "green": (125, 0.80, 0.65),
    "cyan": (182, 0.80, 0.90),
    "blue": (225, 0.85, 0.85),
    "purple": (278, 0.75, 0.62),
    "pink": (330, 0.42, 1.00),
}
CLEARLY_COVERED = 0.1  # of an object's own area, hidden by one other: "in front of" is then plain to see
PLACES = 20  # places tried for an object before the scene does without it
LAYOUT_SIZE = 64  # pixels at which visibility is judged, whatever the image size
DARK_BAND, DARK_EDGE = 0.45, 0.6  # of the object's own colour
STRIPE_PERIOD = 0.075  # of the image: at 64 pixels the bands are 2.4 pixels wide, and a small object has room for five
SHIFT = 6  # fractional bits of the coordinates handed to OpenCV

Colour = tuple[float, float, float]  # RGB, 0 to 255


class Level(NamedTuple):
    """How crowded scenes are: the number of objects, and the share of an object's own area that is left in sight."""

    fewest: int
    most: int
    least_visible: float

    @property
    def counts(self) -> tuple[str, ...]:
        """The classes of the task "count": an object without a place is left out, so there may be few."""
        return tuple(str(number) for number in range(1, self.most + 1))


STANDARD = "standard"
LEVELS = {STANDARD: Level(1, 5, 0.6), "hard": Level(5, 8, 0.4)}


class SceneObject(NamedTuple):
    """One object. Lengths are fractions of the image's side, x to the right, y down."""

    shape: str
    colour: str
    size: str  # "small" or "large"
    texture: str  # "plain" or "striped"
    x: float
    y: float
    radius: float
    angle: float  # radians, clockwise in the picture
    rgb: Colour
    stripe_angle: float  # radians


class Background(NamedTuple):
    """A pattern that blends two muted colours."""

    pattern: str
    rgb: tuple[Colour, Colour]
    cycles: float  # periods across the image, for the patterns that repeat
    angle: float  # radians
    phase: tuple[float, float]  # radians
    grain: int  # seeds the patterns made of noise


class Scene(NamedTuple):
    """What a picture shows. Objects stand back to front; `covers` holds (front, back) indices of clear occlusions."""

    background: Background
    objects: tuple[SceneObject, ...]
    covers: tuple[tuple[int, int], ...]


def random_scene(rng: random.Random, level: Level) -> Scene:
    """As many objects as `level` says, each of them with at least its least_visible in sight."""
    layout = np.zeros((LAYOUT_SIZE, LAYOUT_SIZE), np.uint8)  # 1 + index of the object that is seen there
    objects, areas, visible, covers = [], [], [], []  # areas and visible in pixels of the layout
    for _ in range(rng.randint(level.fewest, level.most)):
        sketch = _random_object(rng)
        for _ in range(PLACES):
            placed = _moved(sketch, rng)
            trial = cv2.fillPoly(layout.copy(), _contours(placed, LAYOUT_SIZE), len(objects) + 1, shift=SHIFT)
            *left, own = np.bincount(trial.ravel(), minlength=len(objects) + 2)[1:].tolist()
            if all(seen >= level.least_visible * area for seen, area in zip(left, areas)):
                hidden = [(before - seen) / area for before, seen, area in zip(visible, left, areas)]
                covers += [(len(objects), back) for back, part in enumerate(hidden) if part >= CLEARLY_COVERED]
                layout, visible = trial, [*left, own]
                areas.append(own)
                objects.append(placed)
                break
    return Scene(_random_background(rng), tuple(objects), tuple(covers))


def draw(scene: Scene, size: int) -> np.ndarray:
    """The picture: uint8 [size, size, 3], RGB."""
    first, second = np.array(scene.background.rgb)
    blend = np.stack([(second - first) / 255, first], axis=1)  # of (pattern, 1), for each channel
    image = cv2.transform((255 * _pattern(scene.background, size)).astype(np.uint8), blend)
    for item in scene.objects:
        _draw_object(image, item)
    return image


def draw_mask(scene: Scene, size: int, attribute: str = "shape") -> np.ndarray:
    """uint8 [size, size]: 0 is background, 1 + the index of an object's shape (in SHAPES) or colour (in COLOURS)."""
    classes = {"shape": SHAPES, "colour": COLOURS}[attribute]
    return _paint(scene, size, [1 + classes.index(getattr(item, attribute)) for item in scene.objects])


def draw_instances(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size]: 0 is background, 1 + i what is seen of object i."""
    return _paint(scene, size, range(1, 1 + len(scene.objects)))


def _paint(scene: Scene, size: int, values: Iterable[int]) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    for item, value in zip(scene.objects, values):
        cv2.fillPoly(mask, _contours(item, size), value, shift=SHIFT)
    return mask


def boxes(scene: Scene, size: int) -> np.ndarray:
    """float32 [objects, 4]: left, top, right, bottom in pixels, back to front, hidden parts included."""
    outlines = [_outline(item, size)[0] for item in scene.objects]
    return np.array([[*outer.min(axis=0), *outer.max(axis=0)] for outer in outlines], np.float32)


def labels(scene: Scene) -> dict[str, int | np.ndarray]:
    """The answers to SceneSource.tasks."""
    seen = {(item.colour, item.shape) for item in scene.objects}
    return {
        "shape": np.isin(SHAPES, [shape for _, shape in seen]),
        "colour": np.isin(COLOURS, [colour for colour, _ in seen]),
        "pair": np.isin(PAIRS, [f"{colour} {shape}" for colour, shape in seen]),
        "count": len(scene.objects) - 1,
        "background": BACKGROUNDS.index(scene.background.pattern),
    }


@dataclasses.dataclass(frozen=True)
class SceneSource:
    """`count` scenes of one split as a sources.Source, drawn `size` pixels wide and high; nothing is stored.

    `level` is one of LEVELS. Raises UserError for an unknown split or level, or a count or size below 1.
    """

    seed: int
    split: str
    count: int
    size: int
    level: str = STANDARD

    segmentations: ClassVar[dict[str, tuple[str, ...]]] = {
        "shape": ("background", *SHAPES),
        "colour": ("background", *COLOURS),
    }

    def __post_init__(self):
        if self.level not in LEVELS:
            raise UserError(f"scenes have no level {self.level!r}: choose one of {', '.join(LEVELS)}")
        if self.split not in SPLITS:
            raise UserError(f"scenes have no split {self.split!r}: choose one of {', '.join(SPLITS)}")
        if self.count < 1 or self.size < 1:
            raise UserError(f"scenes need a count and a size of at least 1, not count={self.count}, size={self.size}")

    @property
    def tasks(self) -> dict[str, Task]:
        return {
            "shape": Task("multi", SHAPES),
            "colour": Task("multi", COLOURS),
            "pair": Task("multi", PAIRS),
            "count": Task("single", LEVELS[self.level].counts),
            "background": Task("single", BACKGROUNDS),
        }

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        scene = self.scene(index)
        return Example(draw(scene, self.size), scene_captions.captions(scene, self._rng(index, "captions")))

    def scene(self, index: int) -> Scene:
        """The geometry of scene `index`. Raises IndexError outside 0 <= index < len(self)."""
        return random_scene(self._rng(index, "scene"), LEVELS[self.level])

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """ "shape", "colour", "pair": bool [classes]; "count", "background": int, the class's index."""
        return labels(self.scene(index))

    def file(self, index: int) -> str:
        return f"{self.split}/{index}"

    def mask(self, index: int, name: str = "shape") -> np.ndarray:
        """uint8 [size, size] of class indices: 0 is background, 1 + the index in SHAPES or COLOURS elsewhere."""
        return draw_mask(self.scene(index), self.size, name)

    def phrases(self, index: int) -> list[Phrase]:
        """For every shape and every colour that only one object has: "a red star", pointed at by that word."""
        scene = self.scene(index)
        seen = draw_instances(scene, self.size)
        phrases = []
        for kind in ("shape", "colour"):
            words = [getattr(item, kind) for item in scene.objects]
            for i, (item, word) in enumerate(zip(scene.objects, words)):
                if words.count(word) == 1:
                    caption = scene_captions.name_with_article(item)
                    phrases.append(Phrase(caption, word, kind, seen == 1 + i))
        return phrases

    def objects_mask(self, index: int) -> np.ndarray:
        """bool [size, size]: where any object is seen."""
        return draw_instances(self.scene(index), self.size) > 0

    def boxes(self, index: int) -> np.ndarray:
        """float32 [objects, 4]: left, top, right, bottom in pixels, back to front, hidden parts included."""
        return boxes(self.scene(index), self.size)

    def _rng(self, index: int, purpose: str) -> random.Random:
        # Python's generator: a scene takes some hundred single draws, each several times dearer from NumPy's.
        # The words are hashed (SHA-512), so no two splits, indices or purposes share a stream.
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return random.Random(f"{self.seed} {self.split} {operator.index(index)} {purpose}")


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


def _moved(item: SceneObject, rng: random.Random) -> SceneObject:
    margin = REACH * item.radius
    return item._replace(x=rng.uniform(margin, 1 - margin), y=rng.uniform(margin, 1 - margin))


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


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))


def _pattern(background: Background, size: int) -> np.ndarray:
    """float32 [size, size] in 0..1: how much of the second colour."""
    across = (np.arange(size, dtype=np.float32) + 0.5) / size
    step_x, step_y = math.cos(background.angle), math.sin(background.angle)
    if background.pattern == "gradient":
        ramp = step_x * across + step_y * across[:, None]
        return (ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)
    if background.pattern == "speckled":
        return cv2.resize(_grain(background, 48), (size, size), interpolation=cv2.INTER_AREA)
    if background.pattern == "cloudy":
        return cv2.resize(_grain(background, 6), (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    frequency = 2 * math.pi * background.cycles
    along = np.cos(frequency * (step_x * across + step_y * across[:, None]) + background.phase[0])
    if background.pattern == "striped":
        return (0.5 + 2 * along).clip(0, 1)
    crosswise = np.cos(frequency * (step_y * across - step_x * across[:, None]) + background.phase[1])
    if background.pattern == "dotted":
        return (2 * (along + crosswise - 0.75)).clip(0, 1)
    return (0.5 + 3 * along * crosswise).clip(0, 1)  # checked


def _grain(background: Background, cells: int) -> np.ndarray:
    return np.random.default_rng(background.grain).random((cells, cells), np.float32)


def _draw_object(image: np.ndarray, item: SceneObject) -> None:
    """Antialiased, striped if so, with a darker edge that parts it from neighbours of its own colour."""
    contours = _contours(item, len(image))
    cv2.fillPoly(image, contours, item.rgb, cv2.LINE_AA, SHIFT)
    if item.texture == "striped":
        _draw_bands(image, item)
    edge = [DARK_EDGE * channel for channel in item.rgb]
    cv2.polylines(image, contours, True, edge, 1 + len(image) // 100, cv2.LINE_AA, SHIFT)


def _draw_bands(image: np.ndarray, item: SceneObject) -> None:
    """The dark bands of a striped object, in the window of the image that it fills."""
    size = len(image)
    left, top = int((item.x - REACH * item.radius) * size), int((item.y - REACH * item.radius) * size)
    span = math.ceil(2 * REACH * item.radius * size) + 1
    window = image[top : top + span, left : left + span]
    inside = cv2.fillPoly(np.zeros(window.shape[:2], np.uint8), _contours(item, size, left, top), 1, shift=SHIFT)
    step = 2 * math.pi / (STRIPE_PERIOD * size)
    x = (np.arange(window.shape[1]) + (left + 0.5 - item.x * size)) * (step * math.cos(item.stripe_angle))
    y = (np.arange(window.shape[0]) + (top + 0.5 - item.y * size)) * (step * math.sin(item.stripe_angle))
    window[(np.cos(x + y[:, None]) < 0) & (inside > 0)] = [DARK_BAND * channel for channel in item.rgb]


def _contours(item: SceneObject, size: int, left: int = 0, top: int = 0) -> list[np.ndarray]:
    """The outline as OpenCV takes it: int32 [points, 2] in 1/2**SHIFT pixels, from the middle of pixel (left, top)."""
    return [np.rint(points).astype(np.int32) for points in _outline(item, size, left + 0.5, top + 0.5, 1 << SHIFT)]


def _outline(item: SceneObject, size: int, left: float = 0, top: float = 0, unit: int = 1) -> list[np.ndarray]:
    """Closed contours, float64 [points, 2], in 1/unit pixels from (left, top); the second, if any, is a hole."""
    scale = unit * size * item.radius
    cosine, sine = scale * math.cos(item.angle), scale * math.sin(item.angle)
    centre = (unit * (item.x * size - left), unit * (item.y * size - top))
    affine = np.array([(cosine, sine), (-sine, cosine), centre])
    return [points @ affine for points in UNIT_OUTLINES[item.shape]]
