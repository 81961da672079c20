"""A scene seen through a window: what is in it, and an example that is drawn through it.

A crop of a picture magnifies it and cuts objects off, and sentences about the picture become false. A window onto the
scene is drawn at the size of the crop, and captions and labels are made from what is visible in it.
"""

import functools
import random
from typing import NamedTuple

import cv2
import numpy as np

from tc_jepa.data.scenes.captions import captions
from tc_jepa.data.scenes.drawing import contours, draw, SHIFT
from tc_jepa.data.scenes.labels import labels
from tc_jepa.data.scenes.layout import CLEARLY_COVERED, LAYOUT_SIZE
from tc_jepa.data.scenes.scene import Frame, Level, Scene, SceneObject, WHOLE
from tc_jepa.data.sources import Drawn, Labels
from tc_jepa.data.transforms import Box

MENTIONED = 0.5  # of an object's area, visible in the window: the least with which captions and labels know it
UNSEEN = 0.02  # of its area: with less, an object that is not mentioned is hardly noticed either
FINENESS = 1024  # positions along a side at which a window may begin and end


class View(NamedTuple):
    """What is visible in a window. Places of the objects are those of their visible parts, in fractions of the window.

    `complete` says whether all objects that can be noticed are mentioned.
    """

    scene: Scene
    complete: bool


def view(scene: Scene, frame: Frame) -> View:
    """What is visible of a scene in a window."""
    layout = np.zeros((LAYOUT_SIZE, LAYOUT_SIZE), np.uint8)
    number, covers, areas, before = len(scene.objects), [], [], np.zeros(0)
    for front, item in enumerate(scene.objects):
        cv2.fillPoly(layout, contours(item, LAYOUT_SIZE, frame=frame), front + 1, shift=SHIFT)
        after = np.bincount(layout.ravel(), minlength=number + 1)[1:]
        areas.append(filled_pixels(item, frame))
        hidden = before[:front] - after[:front]
        covers += [(front, back) for back in range(front) if hidden[back] >= CLEARLY_COVERED * areas[back]]
        before = after
    shares = before / np.array(areas) if number else before
    kept = [i for i in range(number) if shares[i] >= MENTIONED]
    objects = tuple(_placed(scene.objects[i], layout == i + 1) for i in kept)
    renumbered = {i: place for place, i in enumerate(kept)}
    covers = tuple((renumbered[a], renumbered[b]) for a, b in covers if a in renumbered and b in renumbered)
    complete = not any(UNSEEN <= share < MENTIONED for share in shares)
    return View(scene._replace(objects=objects, covers=covers), complete)


def filled_pixels(item: SceneObject, frame: Frame) -> float:
    """About the number of pixels that fillPoly fills in the layout for an object, were the layout large enough.

    It fills the pixels on an outline too, which on average lie half outside.
    """
    outlines = contours(item, LAYOUT_SIZE, frame=frame)
    outer, *holes = (cv2.contourArea(points) / 4**SHIFT for points in outlines)
    return outer - sum(holes) + sum(cv2.arcLength(points, True) / 2**SHIFT for points in outlines) / 2


def _placed(item: SceneObject, visible: np.ndarray) -> SceneObject:
    """The object in the middle of the pixels of the layout where it is visible."""
    moments = cv2.moments(visible.view(np.uint8), binaryImage=True)
    x, y = (moments[name] / moments["m00"] for name in ("m10", "m01"))
    return item._replace(x=(x + 0.5) / LAYOUT_SIZE, y=(y + 0.5) / LAYOUT_SIZE)


class DrawnScene(Drawn):
    """A scene as an example: the whole, or what is seen through a window. Drawn when asked for, at `size` pixels."""

    def __init__(self, scene: Scene, level: Level, size: int, seed: str, frame: Frame = WHOLE):
        self._scene, self._level, self._size, self._seed, self._frame = scene, level, size, seed, frame

    @property
    def shape(self) -> tuple[int, int, int]:
        return FINENESS, FINENESS, 3

    @functools.cached_property
    def image(self) -> np.ndarray:
        return draw(self._scene, self._size, self._frame)

    @functools.cached_property
    def _view(self) -> View:
        return view(self._scene, self._frame)

    @functools.cached_property
    def captions(self) -> tuple[str, ...]:
        """True of what is visible; they are a function of the scene and the window."""
        scene, complete = self._view
        return captions(scene, random.Random(f"{self._seed} {tuple(self._frame)}"), complete)

    @property
    def labels(self) -> Labels:
        return labels(self._view.scene, self._level)

    def through(self, box: Box, size: int) -> "DrawnScene":
        left, top, width, height = self._frame
        frame = Frame(
            left + width * box.left / FINENESS,
            top + height * box.top / FINENESS,
            width * box.width / FINENESS,
            height * box.height / FINENESS,
        )
        return DrawnScene(self._scene, self._level, size, self._seed, frame)
