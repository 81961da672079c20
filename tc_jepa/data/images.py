"""Decoding image files. TFDS's own decoder is not used: it decodes CMYK and palette images wrongly."""

from collections.abc import Callable
import functools
import io
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image

from tc_jepa.errors import UserError

IGNORED = 255  # in a mask: a pixel that is not counted
ORIENTATION = 0x0112  # EXIF's tag; from 5 on, width and height are swapped
JPEG = b"\xff\xd8\xff"  # how a JPEG file begins
# By divisor of both sides: how OpenCV decodes a JPEG at a reduced scale of its DCT. The flags "grayscale" and "RGB" are
# one flag, "RGB at that scale": together with the "color" ones, which are BGR, OpenCV refuses it.
SCALES = {
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    1: cv2.IMREAD_COLOR_RGB,
}


def decode_image(data: bytes, divisor: int = 1) -> np.ndarray:
    """Decodes an image file to uint8 [height, width, 3], RGB.

    A JPEG can be decoded smaller: each side divided by `divisor`, one of SCALES, and rounded up.

    The result is upright: the orientation in the file's EXIF is applied, which may swap height and width. Grey is
    repeated over the three channels; palettes are looked up; CMYK is converted; 16 bits are scaled to 8; alpha is
    dropped, not composited, as other loaders do; of an animation the first frame is taken.

    Raises ValueError if the bytes are not an image, or only its beginning.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), SCALES[divisor])
    except cv2.error:  # on no bytes at all, and on more pixels than OpenCV allows
        pixels = None
    if pixels is None:
        raise ValueError(f"OpenCV cannot read an image from these {len(data)} bytes")
    return pixels


class EncodedImage:
    """An image file that is decoded when its pixels are asked for, a JPEG also at a reduced scale.

    `data` is the file, `divisors` are the scales that it has, as divisors of its sides. `where` begins the message of
    the UserError that both methods raise for a file that is not a complete image.
    """

    def __init__(self, data: bytes, where: str):
        self.data, self._where = data, where
        self.divisors = tuple(SCALES) if data.startswith(JPEG) else (1,)
        self._pixels: dict[int, np.ndarray] = {}  # so that several views of an image decode it once

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the whole image, from the file's header."""
        return (*self._read(image_shape), 3)

    def pixels(self, divisor: int = 1) -> np.ndarray:
        """Returns uint8 [height / divisor, width / divisor, 3], rounded up; `divisor` is one of `divisors`."""
        if divisor not in self._pixels:
            self._pixels[divisor] = self._read(decode_image, divisor)
        return self._pixels[divisor]

    def _read(self, reader: Callable, *arguments: int) -> Any:
        try:
            return reader(self.data, *arguments)
        except ValueError as error:
            raise UserError(f"{self._where} does not decode: {error}; prepare it again") from error


def decoded(image: np.ndarray | EncodedImage) -> np.ndarray:
    """Returns the pixels of an image at its full size."""
    return image.pixels() if isinstance(image, EncodedImage) else image


def image_shape(data: bytes | BinaryIO) -> tuple[int, int]:
    """The height and width that decode_image returns, from the file's header. Raises ValueError if there is none."""
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return image.size if turned else image.size[::-1]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"Pillow finds no image header ({error})") from error


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes a PNG to class indices, uint8 [height, width]: palette indices or grey values, exactly as stored.

    By Pillow: OpenCV turns palettes into colours. ValueError for no complete PNG, several channels, values above 255.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as png:
            indices = np.asarray(png)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG chunks
        raise ValueError(f"Pillow cannot read a PNG from these {len(data)} bytes") from error
    if indices.ndim != 2:
        raise ValueError(f"a mask has one channel, of class indices; this PNG has {indices.shape[2]} ({png.mode})")
    if indices.max() > 255:
        raise ValueError(f"a mask's class indices are at most 255; this PNG has {indices.max()}")
    return indices.astype(np.uint8)
