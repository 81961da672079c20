"""The outlines of the scenes' shapes, centred at (0, 0) and of about the same apparent size."""

import math

import numpy as np

REACH = 1.2  # of its radius: the largest distance of an object's outline from its centre, at any rotation


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
    name: [np.concatenate([points, np.ones((len(points), 1))], axis=1) for points in contours]
    for name, contours in _OUTLINES.items()
}
