"""Decoding image files. TFDS's own decoder is not used: it decodes CMYK and palette images wrongly."""

import io
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

IGNORED = 255  # in a mask: a pixel that is not counted
ORIENTATION = 0x0112  # EXIF's tag; from 5 on, width and height are swapped


def decode_image(data: bytes) -> np.ndarray:
    """Decodes an image file to uint8 [height, width, 3], RGB.

    The result is upright: the orientation in the file's EXIF is applied, which may swap height and width. Grey is
    repeated over the three channels; palettes are looked up; CMYK is converted; 16 bits are scaled to 8; alpha is
    dropped, not composited, as other loaders do; of an animation the first frame is taken.

    Raises ValueError if the bytes are not an image, or only its beginning.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # on no bytes at all, and on more pixels than OpenCV allows
        pixels = None
    if pixels is None:
        raise ValueError(f"OpenCV cannot read an image from these {len(data)} bytes")
    return pixels


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
