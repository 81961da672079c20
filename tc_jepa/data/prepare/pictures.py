"""Image and mask files that were checked: they decode, and masks have the size of their images."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
import hashlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tc_jepa.data.images import decode_image, decode_mask, image_shape
from tc_jepa.data.prepare.dataset import BadImage, Record
from tc_jepa.data.prepare.masks import MaskValues
from tc_jepa.errors import UserError

DIGEST_BYTES = 16
READERS = 8  # threads that read the headers of images


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
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}); make it readable") from error


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
        with Image.open(pair.mask) as mask, open(pair.image, "rb") as image:
            found, wanted = mask.size[::-1], image_shape(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return None if found == wanted else _wrong_size(pair.where, found, wanted)


def _wrong_size(where: str, found: tuple[int, int], wanted: tuple[int, int]) -> str:
    sizes = f"has {found[1]} x {found[0]} pixels and its upright image {wanted[1]} x {wanted[0]}"
    return f"{where} {sizes}; give the mask the size of its image"
