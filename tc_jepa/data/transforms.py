"""Crops and resizing. Images stay uint8: they are normalised on the device."""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from tc_jepa.data.images import decoded, EncodedImage
from tc_jepa.data.sources import Drawn, Example

TRIES = 10
NEARLY = 1.2  # times the size: bilinear interpolation alone is then closer to the mean by area


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: np.ndarray) -> np.ndarray:
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclasses.dataclass(frozen=True)
class Crop:
    """Random crops: side in pixels, area fraction, width / height, and whether half of the images are mirrored."""

    size: int
    scale: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool

    def seen(self, example: Example | Drawn, rng: np.random.Generator) -> Example | Drawn:
        """The example through a random crop: its image is uint8 [size, size, 3].

        Captions and labels are those of the whole image, unless the example is drawn anew through the crop.
        """
        if isinstance(example, Drawn):
            return example.through(self.draw(*example.shape[:2], rng), self.size)
        return example._replace(image=self.cut(example.image, rng))

    def cut(self, image: np.ndarray | EncodedImage, rng: np.random.Generator) -> np.ndarray:
        """A random part of the image, resized to uint8 [size, size, 3]; see `draw`, `resize` and `cut_encoded`."""
        box = self.draw(*image.shape[:2], rng)
        if isinstance(image, EncodedImage):
            return cut_encoded(image, box, self.size)
        return resize(box.of(image), (self.size, self.size))

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """A random part of an image of that size.

        As torchvision's RandomResizedCrop: the area fraction is drawn uniformly from `scale` and width / height
        log-uniformly from `aspect`; after ten draws that do not fit, the largest centred crop in `aspect` is taken.
        """
        low, high = self.aspect
        for _ in range(TRIES):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                return Box(int(top), int(left), h, w)
        ratio = min(max(width / height, low), high)
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return Box((height - h) // 2, (width - w) // 2, h, w)

    def flipped(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image, mirrored in half of the cases if `flip`."""
        return image[:, ::-1] if self.flip and rng.random() < 0.5 else image


def cut_encoded(image: EncodedImage, box: Box, size: int) -> np.ndarray:
    """A part of the image, resized fast to uint8 [size, size, 3].

    A JPEG is decoded at the smallest scale, 1 / n, at which the part is not smaller than the result. The part is then
    rounded to pixels of that scale, which moves its sides by n / 2 pixels at most. See shrink_fast for the rest.
    """
    n = divisor(image, box, size)
    pixels = image.pixels(n)
    sides = box.top, box.left, box.top + box.height, box.left + box.width
    top, left, bottom, right = ((side + n // 2) // n for side in sides)
    return shrink_fast(pixels[top:bottom, left:right], size)


def divisor(image: EncodedImage, box: Box, size: int) -> int:
    """The n of the smallest scale that the file has at which neither side of the part is smaller than `size`."""
    return max(n for n in image.divisors if n == 1 or min(box.height, box.width) >= n * size)


def shrink_fast(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes to [size, size, 3] as `resize` does, but shrinks in less than half of the time.

    An image that shrinks is interpolated bilinearly at twice the size, of which every 2 x 2 pixels become their mean.
    """
    height, width = image.shape[:2]
    if min(height, width) < size or max(height, width) < NEARLY * size:
        return resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    twice = cv2.resize(image, (2 * size, 2 * size), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(twice, (size, size), interpolation=cv2.INTER_AREA)


def resize_and_centre_crop(image: np.ndarray | EncodedImage, size: int) -> np.ndarray:
    """The centre of the image after its shorter side was resized to `size`: uint8 [size, size, 3]. For evaluation."""
    image = decoded(image)
    height, width = image.shape[:2]
    factor = size / min(height, width)
    return centre(resize(image, (round(height * factor), round(width * factor))), size, size)


def resize_and_centre_crop_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The same part of a class map [height, width]: [size, size] of the same dtype, without interpolation."""
    height, width = mask.shape
    factor = size / min(height, width)
    return centre(resize_mask(mask, (round(height * factor), round(width * factor))), size, size)


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A class map resized to (height, width): the class of the nearest pixel, in the same dtype."""
    if mask.shape == shape:
        return mask
    resized = cv2.resize(mask.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(mask.dtype)


def centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def resize(image: np.ndarray, shape: tuple[int, int], interpolation: int | None = None) -> np.ndarray:
    """Resizes to (height, width): by area if both sides shrink, to avoid aliasing, otherwise bilinearly.

    `interpolation`, of OpenCV, overrides the choice. An image of that shape is returned as it is.
    """
    if image.shape[:2] == shape:
        return image
    shrinks = image.shape[0] >= shape[0] and image.shape[1] >= shape[1]
    chosen = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, shape[::-1], interpolation=chosen if interpolation is None else interpolation)
