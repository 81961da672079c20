"""Crops and resizing. Images stay uint8: they are normalised on the device."""

import dataclasses
import math

import cv2
import numpy as np

TRIES = 10


@dataclasses.dataclass(frozen=True)
class Crop:
    """Random crops: side in pixels, area fraction, width / height, and whether half of the images are mirrored."""

    size: int
    scale: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool

    def cut(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A random part of the image, resized to uint8 [size, size, 3].

        As torchvision's RandomResizedCrop: the area fraction is drawn uniformly from `scale` and width / height
        log-uniformly from `aspect`; after ten draws that do not fit, the largest centred crop in `aspect` is taken.
        """
        height, width = image.shape[:2]
        low, high = self.aspect
        for _ in range(TRIES):
            area = height * width * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                return resize(image[top : top + h, left : left + w], (self.size, self.size))
        ratio = min(max(width / height, low), high)
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return resize(centre(image, h, w), (self.size, self.size))

    def flipped(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image, mirrored in half of the cases if `flip`."""
        return image[:, ::-1] if self.flip and rng.random() < 0.5 else image


def resize_and_centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre of the image after its shorter side was resized to `size`: uint8 [size, size, 3]. For evaluation."""
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


def resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resizes to (height, width): by area if both sides shrink, to avoid aliasing, otherwise bilinearly."""
    if image.shape[:2] == shape:
        return image
    shrinks = image.shape[0] >= shape[0] and image.shape[1] >= shape[1]
    return cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
