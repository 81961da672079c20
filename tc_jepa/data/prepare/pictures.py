"""Image and mask files, checked: they decode, and masks have the size of their images and the values of classes."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from tc_jepa.data.images import decode_image, decode_mask, IGNORED, image_shape
from tc_jepa.data.prepare import texts
from tc_jepa.data.prepare.dataset import BadImage, Record
from tc_jepa.errors import UserError
from tc_jepa.storage.reading import check_regular, read_regular

DIGEST_BYTES = 16
PNG = ".png"
READERS = 8  # threads that read the headers of images


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """What the values of masks stand for: `first` + i is class i; `ignored` and 255 are ignored."""

    classes: tuple[str, ...]
    first: int
    ignored: int | None

    def encode(self, data: bytes, mask: np.ndarray, where: str) -> bytes:
        """A PNG of a mask's class indices, 255 = ignore, from uint8 [height, width]. UserError for other values."""
        last = self.first + len(self.classes) - 1
        counted = (mask != IGNORED) & (True if self.ignored is None else mask != self.ignored)
        wrong = counted & ((mask < self.first) | (mask > last))
        if wrong.any():
            classes = f"the {len(self.classes)} classes are {self.first} to {last}"
            fix = "correct it, --classes or --first_class, or give --ignore_index for a value to ignore"
            raise UserError(f"{where} contains {mask[wrong][0]}, but {classes}; {fix}")
        indices = np.where(counted, mask - np.uint8(self.first), np.uint8(IGNORED))
        return data if np.array_equal(indices, mask) else cv2.imencode(PNG, indices)[1].tobytes()


def read_mask_values(classes: str, first: int, ignored: int | None) -> MaskValues:
    """Reads a file with one class name per line; the first names the value `first`. Raises UserError if invalid."""
    path, fix = Path(classes), "give a text file with one class name per line, in the order of the values"
    try:
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--classes={path} cannot be read ({error.strerror}); {fix}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--classes={path} is not UTF-8; {fix}") from error
    if not lines:
        raise UserError(f"--classes={path} is empty; {fix}")
    for number, name in enumerate(lines, start=1):
        texts.class_name(name, f"{path}:{number}")
        if (before := lines.index(name) + 1) != number:
            raise UserError(f"{path}:{number} repeats {name!r} of line {before}; class names must be unique")
    if first + len(lines) > IGNORED:
        fitting = f"with --first_class={first} at most {IGNORED - first} fit below 255"
        raise UserError(f"{path} has {len(lines)} lines; {fitting}")
    if ignored is not None and first <= ignored < first + len(lines):
        also = f"is also the value of {lines[ignored - first]!r} in {path}"
        raise UserError(f"--ignore_index={ignored} {also}; leave it out, or give --first_class, the first line's value")
    return MaskValues(tuple(lines), first, ignored)


class MaskPair(NamedTuple):
    """The paths of an image and its mask; `where` names the mask in messages."""

    image: Path
    mask: Path
    where: str


def read_record(
    path: Path, where: str, fix: str, record: Record, pair: MaskPair | None = None, values: MaskValues | None = None
) -> Record | BadImage:
    """`record` with the image of a file, and its mask; BadImage if the image does not decode.

    `values` are the classes of the mask; without them its values are class indices. Raises UserError for a file that
    cannot be read, and for a mask that is not a PNG of class indices with the size of its image.
    """
    data = _read(path, where)
    try:
        shape = decode_image(data).shape[:2]
    except ValueError as error:
        return BadImage(f"{where} does not decode: {error}", fix)
    mask = {} if pair is None else {"mask": _read_mask(pair, shape, values)}
    return record._replace(example={"image": data, **record.example, **mask})


def check_mask_sizes(pairs: Sequence[MaskPair]) -> None:
    """Raises UserError, with their number and the first, for masks whose size differs from their upright image's.

    It reads the headers of the files. Files whose header cannot be read are left to read_record.
    """
    with ThreadPoolExecutor(READERS) as pool:  # a network file system answers slowly, but many at once
        wrong = [message for message in pool.map(_size_error, pairs) if message]
    if wrong:
        number = f"{len(wrong)} of {len(pairs)} masks differ in size from their images; the first: "
        raise UserError(f"{number if len(wrong) > 1 else ''}{wrong[0]}")


def digest(content: bytes, files: Iterable[Path]) -> bytes:
    """A digest of `content` and of the sizes and modification times of `files`. Raises UserError for a missing file."""
    stamps = []
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); correct or remove it") from error
        stamps.append((stat.st_size, stat.st_mtime_ns))
    return hashlib.blake2b(content + repr(stamps).encode(), digest_size=DIGEST_BYTES).digest()


def _read(path: Path, where: str) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}); correct or remove it") from error


def _read_mask(pair: MaskPair, shape: tuple[int, int], values: MaskValues | None) -> bytes:
    """The PNG of class indices to store: the original file if its values are the indices."""
    data = _read(pair.mask, pair.where)
    try:
        mask = decode_mask(data)
    except ValueError as error:
        raise UserError(f"{pair.where} does not decode: {error}; save it as a PNG of class indices") from error
    if mask.shape != shape:
        raise UserError(_wrong_size(pair.where, mask.shape, shape))
    return data if values is None else values.encode(data, mask, pair.where)


def _size_error(pair: MaskPair) -> str | None:
    try:
        for path in (pair.mask, pair.image):
            check_regular(path)
        with open(pair.mask, "rb") as mask, open(pair.image, "rb") as image:
            found, wanted = image_shape(mask), image_shape(image)
    except (OSError, ValueError):
        return None
    return None if found == wanted else _wrong_size(pair.where, found, wanted)


def _wrong_size(where: str, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    sizes = f"has {found[1]} x {found[0]} pixels and its upright image {wanted[1]} x {wanted[0]}"
    return f"{where} {sizes}; give the mask the size of its image"
