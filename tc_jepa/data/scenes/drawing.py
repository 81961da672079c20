"""Drawing a scene: pictures and masks at any size, both from the same geometry."""

from collections.abc import Iterable
import math

import cv2
import numpy as np

from tc_jepa.data.scenes.scene import Background, COLOURS, Frame, Scene, SceneObject, SHAPES, Style, WHOLE

REACH = 1.2  # of its radius: the largest distance of an object's outline from its centre, at any rotation
STRIPE_PERIOD = 0.075  # of the image: at 64 pixels the bands are 2.4 pixels wide, and a small object has room for five
GRAINS = {"speckled": (48, cv2.INTER_AREA), "cloudy": (6, cv2.INTER_CUBIC)}  # cells along a side, interpolation
SHIFT = 6  # fractional bits of the coordinates passed to OpenCV


def draw(scene: Scene, size: int, frame: Frame = WHOLE) -> np.ndarray:
    """The picture, or what is seen of it through a frame: uint8 [size, size, 3], RGB."""
    first, second = np.array(scene.background.rgb)
    blend = np.stack([(second - first) / 255, first], axis=1)  # of (pattern, 1), for each channel
    image = cv2.transform((255 * _pattern(scene.background, size, frame)).astype(np.uint8), blend)
    for item in scene.objects:
        _draw_object(image, item, scene.style, frame)
    return image


def draw_mask(scene: Scene, size: int, attribute: str = "shape") -> np.ndarray:
    """uint8 [size, size]: 0 is background, 1 + the index of an object's shape (in SHAPES) or colour (in COLOURS)."""
    classes = {"shape": SHAPES, "colour": COLOURS}[attribute]
    return _paint(scene, size, [1 + classes.index(getattr(item, attribute)) for item in scene.objects])


def draw_instances(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size]: 0 is background, 1 + i the visible part of object i."""
    return _paint(scene, size, range(1, 1 + len(scene.objects)))


def _paint(scene: Scene, size: int, values: Iterable[int]) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    for item, value in zip(scene.objects, values):
        cv2.fillPoly(mask, contours(item, size), value, shift=SHIFT)
    return mask


def _pattern(background: Background, size: int, frame: Frame) -> np.ndarray:
    """float32 [size, size] in 0..1: the share of the second colour."""
    across = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = frame.left + frame.width * across, (frame.top + frame.height * across)[:, None]
    step_x, step_y = math.cos(background.angle), math.sin(background.angle)
    if background.pattern == "gradient":
        ends = step_x * across[[0, -1]] + step_y * across[[0, -1], None]  # over the whole scene
        return ((step_x * x + step_y * y - ends.min()) / max(np.ptp(ends), 1e-6)).clip(0, 1)
    if background.pattern in GRAINS:
        return _from_grain(background, size, frame)
    frequency = 2 * math.pi * background.cycles
    along = np.cos(frequency * (step_x * x + step_y * y) + background.phase[0])
    if background.pattern == "striped":
        return (0.5 + 2 * along).clip(0, 1)
    crosswise = np.cos(frequency * (step_y * x - step_x * y) + background.phase[1])
    if background.pattern == "dotted":
        return (2 * (along + crosswise - 0.75)).clip(0, 1)
    return (0.5 + 3 * along * crosswise).clip(0, 1)  # checked


def _from_grain(background: Background, size: int, frame: Frame) -> np.ndarray:
    """A pattern of noise: cells of random values that are interpolated."""
    cells, interpolation = GRAINS[background.pattern]
    grain = np.random.default_rng(background.grain).random((cells, cells), np.float32)
    if frame == WHOLE:
        return cv2.resize(grain, (size, size), interpolation=interpolation).clip(0, 1)
    # Cells, of which the middle of the first is 0, as a linear function of pixels.
    step_x, step_y = cells * frame.width / size, cells * frame.height / size
    start_x, start_y = cells * frame.left + step_x / 2 - 0.5, cells * frame.top + step_y / 2 - 0.5
    places = np.array([(step_x, 0, start_x), (0, step_y, start_y)])
    smooth = cv2.INTER_LINEAR if interpolation == cv2.INTER_AREA else interpolation  # areas are for whole pictures only
    flags = smooth | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(grain, places, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE).clip(0, 1)


def _draw_object(image: np.ndarray, item: SceneObject, style: Style, frame: Frame) -> None:
    """Antialiased, with its stripes if any, and a darker edge that separates it from neighbours of the same colour."""
    outlines = contours(item, len(image), frame=frame)
    cv2.fillPoly(image, outlines, item.rgb, cv2.LINE_AA, SHIFT)
    if item.texture == "striped":
        _draw_bands(image, item, style.band, frame)
    edge = [style.edge * channel for channel in item.rgb]
    cv2.polylines(image, outlines, True, edge, 1 + len(image) // style.edge_every, cv2.LINE_AA, SHIFT)


def _draw_bands(image: np.ndarray, item: SceneObject, band: float, frame: Frame) -> None:
    """Draws the dark bands of a striped object, in the part of the image that it fills."""
    size, reach = len(image), REACH * item.radius
    x, y = (item.x - frame.left) / frame.width, (item.y - frame.top) / frame.height  # of its centre
    left, columns = _extent(x, reach / frame.width, size)
    top, rows = _extent(y, reach / frame.height, size)
    window = image[top : top + rows, left : left + columns]
    if not window.size:  # outside of the frame
        return
    outlines = contours(item, size, left, top, frame)
    inside = cv2.fillPoly(np.zeros(window.shape[:2], np.uint8), outlines, 1, shift=SHIFT)
    step = 2 * math.pi / (STRIPE_PERIOD * size)
    across = (np.arange(window.shape[1]) + (left + 0.5 - x * size)) * (step * frame.width * math.cos(item.stripe_angle))
    down = (np.arange(window.shape[0]) + (top + 0.5 - y * size)) * (step * frame.height * math.sin(item.stripe_angle))
    window[(np.cos(across + down[:, None]) < 0) & (inside > 0)] = [band * channel for channel in item.rgb]


def _extent(centre: float, reach: float, size: int) -> tuple[int, int]:
    """The first pixel of an object along one side of the image, and how many it may have there."""
    first, count = math.floor((centre - reach) * size), math.ceil(2 * reach * size) + 1
    return max(first, 0), max(first + count, 0) - max(first, 0)


def contours(item: SceneObject, size: int, left: int = 0, top: int = 0, frame: Frame = WHOLE) -> list[np.ndarray]:
    """Outlines for OpenCV, any hole too: int32 [points, 2], 1/2**SHIFT pixels from the middle of pixel (left, top).

    The pixels are those of an image of `size` pixels that shows the frame.
    """
    unit = 1 << SHIFT
    wide, high = unit * size * item.radius / frame.width, unit * size * item.radius / frame.height
    cosine, sine = math.cos(item.angle), math.sin(item.angle)
    x, y = (item.x - frame.left) / frame.width, (item.y - frame.top) / frame.height
    centre = (unit * (x * size - (left + 0.5)), unit * (y * size - (top + 0.5)))
    affine = np.array([(wide * cosine, high * sine), (-wide * sine, high * cosine), centre])
    return [np.rint(points @ affine).astype(np.int32) for points in UNIT_OUTLINES[item.shape]]


# The outlines of the shapes, centred at (0, 0) and of about the same apparent size


def _arc(radius: float, start: float, stop: float, points: int, x: float = 0) -> np.ndarray:
    """Points around (x, 0), from angle `start` up to `stop` in degrees, `stop` excluded."""
    angles = np.radians(np.linspace(start, stop, points, endpoint=False))
    return np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    points = _arc(1.18, -90, 270, 10)
    points[1::2] *= 0.45
    return points


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 15


def _cross(arm: float, half: float) -> np.ndarray:
    quarter = np.array([[half, -arm], [half, -half], [arm, -half]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, times) for times in range(4)])


def _crescent() -> np.ndarray:
    tip, bite = 51, 82  # degrees at which the two circles meet, as seen from the centre of each
    inner = 1.15 * math.sin(math.radians(tip)) / math.sin(math.radians(bite))
    centre = 1.15 * math.cos(math.radians(tip)) - inner * math.cos(math.radians(bite))
    points = np.concatenate([_arc(1.15, tip, 360 - tip, 32), _arc(inner, 360 - bite, bite, 24, centre)])
    return points + (0.2, 0)


_OUTLINES = {
    "circle": [_arc(1.0, 0, 360, 40)],
    "square": [_arc(1.2, 45, 405, 4)],
    "triangle": [np.array([[0, -1.15], [1.0, 0.65], [-1.0, 0.65]])],
    "star": [_star()],
    "cross": [_cross(1.1, 0.38)],
    "heart": [_heart()],
    "ring": [_arc(1.1, 0, 360, 40), _arc(0.55, 0, 360, 24)],
    "crescent": [_crescent()],
}
# Homogeneous coordinates, [points, 3], so that rotation, scaling and translation are one matrix product.
UNIT_OUTLINES = {
    name: [np.pad(points, ((0, 0), (0, 1)), constant_values=1) for points in contours]
    for name, contours in _OUTLINES.items()
}
