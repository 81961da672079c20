"""Decoding image files. TFDS's own decoder is not used: it decodes CMYK and palette images wrongly."""

from collections.abc import Callable
import functools
import io
import struct
from typing import Any, BinaryIO, NamedTuple
import warnings

import cv2
import numpy as np
from PIL import Image

from tc_jepa.data.sources import BadRecord
from tc_jepa.storage.reading import lfs_reason

IGNORED = 255  # in a mask: a pixel that is not counted
MOST_PIXELS = 1 << 27  # of an image or mask: 134 million, 400 MB once decoded. A file of 1 MB can hold 1,000 million
ORIENTATION = 0x0112  # EXIF's tag
TIFF_WIDTH, TIFF_HEIGHT = 256, 257  # tags
JPEG = b"\xff\xd8\xff"  # how a JPEG file begins
# By divisor of both sides: how OpenCV decodes a JPEG at a reduced scale of its DCT. The flags "grayscale" and "RGB" are
# one flag, "RGB at that scale": together with the "color" ones, which are BGR, OpenCV refuses it.
SCALES = {
    divisor: flags | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    for divisor, flags in {
        8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
        4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
        2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
        1: 0,
    }.items()
}
# Pillow warns from 89 million pixels on, and of damaged EXIF. A filter of the user's own is stronger than these.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
warnings.filterwarnings("ignore", "Corrupt EXIF data|Truncated File Read|Tag data larger", UserWarning, append=True)


class Header(NamedTuple):
    """The size of an image file's pixels as a decoder returns them, and the EXIF orientation, 1-8, left to undo."""

    height: int
    width: int
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width after the turn."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_header(data: bytes | BinaryIO) -> Header:
    """Reads the header of an image file. Raises ValueError where there is none, and for more than MOST_PIXELS.

    This is the one place that says how images and masks are turned. EXIF counts, XMP does not, as in browsers.
    """
    file = data
    if isinstance(data, bytes):
        if reason := lfs_reason(data):
            raise ValueError(reason)
        file = io.BytesIO(data)
    try:
        with Image.open(file) as image:
            width, height = image.size
            if image.format == "TIFF":  # OpenCV turns these itself, whatever its flags
                width, height = image.tag_v2[TIFF_WIDTH], image.tag_v2[TIFF_HEIGHT]
                if _valid(image.tag_v2.get(ORIENTATION)) >= 5:
                    width, height = height, width
                header = Header(height, width, 1)
            else:
                exif = _png_exif(file) if image.format == "PNG" else image.info.get("exif")
                header = Header(height, width, _orientation(exif))
            pixels = width * height
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is higher
        raise ValueError(f"it has more than the {MOST_PIXELS:,} pixels that are decoded; shrink it") from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error) as error:
        raise ValueError(f"Pillow finds no image header ({error})") from error
    if pixels > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, and at most {MOST_PIXELS:,} are decoded; shrink it")
    return header


def _png_exif(file: BinaryIO) -> bytes | None:
    """The EXIF of a PNG, which may stand after the pixels, where Pillow finds it only by decoding them."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(size)
        file.seek(size + 4, io.SEEK_CUR)
    return None


def _orientation(exif: bytes | None) -> int:
    """EXIF's orientation; 1 for EXIF that has none or is damaged, as browsers do."""
    found = Image.Exif()
    try:
        found.load(exif)
        return _valid(found.get(ORIENTATION))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return 1


def _valid(orientation: object) -> int:
    return orientation if orientation in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[height, width, ...] as stored -> upright."""
    if orientation == 1:
        return pixels
    pixels = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    pixels = pixels[::-1] if orientation in (3, 4, 7, 8) else pixels
    return np.ascontiguousarray(pixels)


def decode_image(data: bytes, divisor: int = 1, header: Header | None = None) -> np.ndarray:
    """Decodes an image file to uint8 [height, width, 3], RGB.

    A JPEG can be decoded smaller: each side divided by `divisor`, one of SCALES, and rounded up. `header` is what
    read_header returns for `data`, for callers that have it.

    The result is upright: the orientation in the file's EXIF is applied, which may swap height and width. Grey is
    repeated over the three channels; palettes are looked up; CMYK is converted; 16 bits are scaled to 8; alpha is
    dropped, not composited, as other loaders do; of an animation the first frame is taken.

    Raises ValueError if the bytes are not an image, only its beginning, or one of more than MOST_PIXELS.
    """
    header = header or read_header(data)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), SCALES[divisor])
    except cv2.error:  # on no bytes at all
        pixels = None
    if pixels is None:
        raise ValueError(f"OpenCV cannot read an image from these {len(data)} bytes")
    return _turned(pixels, header.orientation)


class EncodedImage:
    """An image file that is decoded when its pixels are asked for, a JPEG also at a reduced scale.

    `data` is the file, `divisors` are the scales that it has, as divisors of its sides. `where` begins the message of
    the BadRecord that both methods raise for a file that is not a complete image.
    """

    def __init__(self, data: bytes, where: str):
        self.data, self._where = data, where
        self.divisors = tuple(SCALES) if data.startswith(JPEG) else (1,)
        self._pixels: dict[int, np.ndarray] = {}  # so that several views of an image decode it once

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the whole image, from the file's header."""
        return (*self._header.upright, 3)

    def pixels(self, divisor: int = 1) -> np.ndarray:
        """Returns uint8 [height / divisor, width / divisor, 3], rounded up; `divisor` is one of `divisors`."""
        if divisor not in self._pixels:
            self._pixels[divisor] = self._read(decode_image, divisor, self._header)
        return self._pixels[divisor]

    @functools.cached_property
    def _header(self) -> Header:
        return self._read(read_header)

    def _read(self, reader: Callable, *arguments: int) -> Any:
        try:
            return reader(self.data, *arguments)
        except ValueError as error:
            raise BadRecord(f"{self._where} does not decode: {error}; prepare it again") from error


def decoded(image: np.ndarray | EncodedImage) -> np.ndarray:
    """Returns the pixels of an image at its full size."""
    return image.pixels() if isinstance(image, EncodedImage) else image


def image_shape(data: bytes | BinaryIO) -> tuple[int, int]:
    """The height and width that decode_image returns, from the file's header. Raises ValueError if there is none."""
    return read_header(data).upright


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes a PNG to class indices, uint8 [height, width]: palette indices or grey values, exactly as stored.

    It is turned as decode_image turns an image. By Pillow: OpenCV turns palettes into colours. Raises ValueError for no
    complete PNG, several channels, values above 255, and as read_header.
    """
    header = read_header(data)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as png:
            indices = np.asarray(png)
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on broken PNG chunks
        raise ValueError(f"Pillow cannot read a PNG from these {len(data)} bytes") from error
    if indices.ndim != 2:
        raise ValueError(f"a mask has one channel, of class indices; this PNG has {indices.shape[2]} ({png.mode})")
    if indices.max() > 255:
        raise ValueError(f"a mask's class indices are at most 255; this PNG has {indices.max()}")
    return _turned(indices.astype(np.uint8), header.orientation)
