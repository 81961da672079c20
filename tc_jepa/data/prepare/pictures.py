"""Images and masks from the user's files, held to decode and to fit each other."""

from collections.abc import Iterable
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tc_jepa.data.images import decode_image, decode_mask
from tc_jepa.data.prepare.dataset import Bad
from tc_jepa.errors import UserError

DIGEST_BYTES = 16


class Picture(NamedTuple):
    """An image file that decodes."""

    data: bytes
    shape: tuple[int, int]  # height and width of the upright image, in pixels


class Mask(NamedTuple):
    """A mask's file, and what it holds."""

    data: bytes
    indices: np.ndarray  # uint8 [height, width]


def read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}); make it readable") from error


def read_image(path: Path, where: str, mend: str) -> Picture | Bad:
    """Bad where it does not decode, with `mend` for what to do about it. UserError where it cannot be read."""
    data = read(path, where)
    try:
        return Picture(data, decode_image(data).shape[:2])
    except ValueError as error:
        return Bad(f"{where} does not decode: {error}", mend)


def read_mask(path: Path, where: str, shape: tuple[int, int]) -> Mask:
    """A PNG of class indices. UserError where it is none, or has another height and width than its image's `shape`."""
    data = read(path, where)
    try:
        indices = decode_mask(data)
    except ValueError as error:
        raise UserError(f"{where} does not decode: {error}; save it as a PNG of class indices") from error
    if indices.shape != shape:
        sizes = f"{indices.shape[1]} x {indices.shape[0]} pixels and its upright image {shape[1]} x {shape[0]}"
        raise UserError(f"{where} is {sizes}; draw it at the image's size")
    return Mask(data, indices)


def digest(content: bytes, files: Iterable[Path]) -> bytes:
    """Of `content` and of files as far as size and time of change tell. UserError for a file that is not there."""
    stamps = []
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); mend or remove it") from error
        stamps.append((stat.st_size, stat.st_mtime_ns))
    return hashlib.blake2b(content + repr(stamps).encode(), digest_size=DIGEST_BYTES).digest()
