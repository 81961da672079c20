"""What a scene is: objects of named shapes and colours on a background, in fractions of the image's side."""

from collections.abc import Mapping
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "crescent")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("checked", "striped", "dotted", "gradient", "speckled", "cloudy")
TEXTURES = ("plain", "striped")
NUMBERS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight")

RADII = {"small": (0.085, 0.105), "large": (0.145, 0.185)}  # of the image; far apart, so that the two words are clear
# Also clear after a crop: in half of the image's area, a small object is not as large as a large one in the whole.
SPACIOUS_RADII = {"small": (0.16, 0.175), "large": (0.25, 0.28)}

Colour = tuple[float, float, float]  # RGB, 0 to 255


class Style(NamedTuple):
    """How objects are drawn."""

    band: float = 0.45  # brightness of the dark bands of striped objects, relative to the object's own
    edge: float = 0.6  # brightness of the outline, relative to the object's own
    edge_every: int = 100  # an outline is 1 pixel wide, and 1 more for every so many of the image's side


class Level(NamedTuple):
    """How scenes are: how many objects, how large, how much they hide each other, and what they have in common.

    A scene has a theme, a shape, a colour and a background pattern that goes with the colour. `agreement` is the
    probability with which an object has the theme's shape, with which it has the theme's colour, and with which the
    background has the theme's pattern; otherwise each is drawn from all.
    """

    fewest: int
    most: int
    least_visible: float  # share of an object's area that other objects leave visible
    radii: Mapping[str, tuple[float, float]] = RADII
    agreement: float = 0.0
    shade: float = 0.9  # the least factor of the brightness of an object's colour
    tint: tuple[float, float] = (0.05, 0.22)  # saturation of the background
    contrast: tuple[float, float] = (0.14, 0.24)  # of the background's two colours, in brightness
    style: Style = Style()
    windows: bool = False  # crops are drawn anew, with captions and labels of what is seen in them

    @property
    def counts(self) -> tuple[str, ...]:
        """The classes of the task "count". An object that finds no free position is left out, so small counts occur.

        A window may be without an object.
        """
        return NUMBERS[0 if self.windows else 1 : self.most + 1]


LEVELS = {
    "standard": Level(1, 5, 0.6),
    "hard": Level(5, 8, 0.4),
    "spacious": Level(
        fewest=1,
        most=3,
        least_visible=0.7,
        radii=SPACIOUS_RADII,
        agreement=0.5,
        shade=0.75,
        tint=(0.1, 0.45),
        contrast=(0.08, 0.16),
        style=Style(band=0.7, edge=0.1, edge_every=40),
        windows=True,
    ),
}


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
    style: Style = Style()


class Frame(NamedTuple):
    """A rectangle through which a scene is seen, in fractions of the scene's side."""

    left: float = 0.0
    top: float = 0.0
    width: float = 1.0
    height: float = 1.0


WHOLE = Frame()
