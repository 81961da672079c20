"""Random changes of colour and sharpness of one image, uint8 [height, width, 3], RGB, in and out.

They do what torchvision's transforms of the same names do on uint8 images. Every operation rounds to uint8.
"""

import dataclasses

import cv2
import numpy as np

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow and torchvision have it
BLUR_KERNEL = 7  # side of the Gaussian kernel in pixels (lejepa MINIMAL.md)
SOLARISE_THRESHOLD = 128  # values from here on are inverted
VALUES = np.arange(256, dtype=np.float32)
PARAMETERS = ("brightness", "contrast", "saturation", "hue", "grey", "blur", "solarise")
JITTER, GREY, BLUR, SOLARISE = slice(4), 4, 5, 6  # their places among PARAMETERS


@dataclasses.dataclass(frozen=True)
class Photometric:
    """Colour jitter, grey, blur and solarise, applied in this order, each with its own probability.

    `brightness`, `contrast` and `saturation` are strengths s of torchvision's ColorJitter: a factor is drawn uniformly
    from [max(0, 1 - s), 1 + s]. `hue` h shifts by a fraction of the circle from [-h, h], h <= 0.5. The four are applied
    in a random order. `blur_sigma` is the (lowest, highest) standard deviation of the blur, in pixels.

    The list of operations, without its crop and flip, is that of lejepa MINIMAL.md.
    """

    jitter_probability: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey_probability: float
    blur_probability: float
    blur_sigma: tuple[float, float]
    solarise_probability: float

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A changed copy of `image`, or `image` itself where nothing was drawn; and what was done, float32 [7].

        In the order of PARAMETERS: the factors of brightness, contrast and saturation minus 1, the shift of the hue, 1
        for grey, the blur's standard deviation in pixels, 1 for solarise. What was not drawn is 0. The order of the
        jitter's changes is not part of it.
        """
        done = np.zeros(len(PARAMETERS), np.float32)
        if rng.random() < self.jitter_probability:
            image, done[JITTER] = self._jitter(image, rng)
        if rng.random() < self.grey_probability:
            image, done[GREY] = adjust_saturation(image, 0.0), 1.0
        if rng.random() < self.blur_probability:
            sigma = rng.uniform(*self.blur_sigma)
            image, done[BLUR] = blur(image, sigma), sigma
        if rng.random() < self.solarise_probability:
            image, done[SOLARISE] = solarise(image), 1.0
        return image, done

    def _jitter(self, image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        strengths = (self.brightness, self.contrast, self.saturation)
        amounts = [rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in strengths]
        amounts.append(rng.uniform(-self.hue, self.hue))
        changes = (adjust_brightness, adjust_contrast, adjust_saturation, shift_hue)
        for i in rng.permutation(len(changes)):
            image = changes[i](image, amounts[i])
        return image, np.subtract(amounts, (1.0, 1.0, 1.0, 0.0))


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """0 gives black, 1 the image."""
    return _look_up(image, VALUES * factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """0 gives the mean grey of the image everywhere, 1 the image."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _look_up(image, mean + factor * (VALUES - mean))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """0 gives the image in grey, 1 the image."""
    return cv2.transform(image, factor * np.eye(3) + (1.0 - factor) * np.tile(GREY_WEIGHTS, (3, 1)))


def shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """`shift` is a fraction of the colour circle; hues have 256 steps, as in Pillow."""
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))
    hue = hue + np.uint8(round(shift * 255) % 256)  # wraps around
    return cv2.cvtColor(cv2.merge([hue, saturation, value]), cv2.COLOR_HSV2RGB_FULL)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a standard deviation of `sigma` pixels."""
    return cv2.GaussianBlur(image, (BLUR_KERNEL, BLUR_KERNEL), sigma, borderType=cv2.BORDER_REFLECT_101)


def solarise(image: np.ndarray) -> np.ndarray:
    """Inverts all values from SOLARISE_THRESHOLD on."""
    return _look_up(image, np.where(VALUES < SOLARISE_THRESHOLD, VALUES, 255.0 - VALUES))


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))
