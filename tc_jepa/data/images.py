"""From the bytes of an image file to pixels. TFDS's own decoder is never used: it garbles CMYK and palette images."""

import io

import cv2
import numpy as np
from PIL import Image

IGNORED = 255  # in a mask: a pixel that counts nowhere
ORIENTATION = 0x0112  # EXIF's tag; from 5 on, width and height are swapped


def decode_image(data: bytes) -> np.ndarray:
    """An image file's bytes -> uint8 [height, width, 3], RGB, as a person sees it.

    Upright: an orientation in the file's EXIF is applied, so height and width may be swapped from those stored. Grey
    is repeated over the three channels; palettes are looked up; CMYK is converted; 16 bits are scaled to 8; alpha is
    dropped, not composited, as the field's loaders do; of an animation the first frame counts.

    Raises ValueError when the bytes are no image, or only the beginning of one.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # on no bytes at all, and on more pixels than OpenCV allows
        pixels = None
    if pixels is None:
        raise ValueError(f"these {len(data)} bytes are no image that OpenCV can read whole")
    return pixels


def image_shape(data: bytes) -> tuple[int, int]:
    """Height and width that decode_image gives, from the file's header alone. ValueError where there is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            return image.size if turned else image.size[::-1]
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"these {len(data)} bytes have no header of an image that Pillow can read") from error


def decode_mask(data: bytes) -> np.ndarray:
    """A PNG's bytes -> uint8 [height, width] of class indices: palette indices or grey values, exactly as stored.

    Pillow, because OpenCV turns palette indices into colours. Raises ValueError when the bytes are no whole PNG, or
    one with more than one channel or with values above 255.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as png:
            indices = np.asarray(png)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG chunks
        raise ValueError(f"these {len(data)} bytes are no PNG that Pillow can read whole") from error
    if indices.ndim != 2:
        raise ValueError(f"a mask has one channel, of class indices; this PNG has {indices.shape[2]} ({png.mode})")
    if indices.max() > 255:
        raise ValueError(f"a mask's class indices are at most 255; this PNG has {indices.max()}")
    return indices.astype(np.uint8)
