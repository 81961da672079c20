"""What a scene is: objects of named shapes and colours on a background, in fractions of the image's side."""

from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("checked", "striped", "dotted", "gradient", "speckled", "cloudy")
TEXTURES = ("plain", "striped")

Colour = tuple[float, float, float]  # RGB, 0 to 255


class Level(NamedTuple):
    """How crowded scenes are: the number of objects, and the share of an object's area that stays visible."""

    fewest: int
    most: int
    least_visible: float

    @property
    def counts(self) -> tuple[str, ...]:
        """The classes of the task "count". An object that finds no free position is left out, so small counts occur."""
        return tuple(str(number) for number in range(1, self.most + 1))


LEVELS = {"standard": Level(1, 5, 0.6), "hard": Level(5, 8, 0.4)}


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
    grain: int  # seed of the patterns made of noise


class Scene(NamedTuple):
    """The content of a picture. Objects are sorted back to front; `covers` has (front, back) indices of occlusions."""

    background: Background
    objects: tuple[SceneObject, ...]
    covers: tuple[tuple[int, int], ...]
