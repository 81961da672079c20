"""The classes that the values of the user's masks stand for."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from tc_jepa.data.images import IGNORED
from tc_jepa.data.prepare import texts
from tc_jepa.errors import UserError

PNG = ".png"


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """What the values of masks stand for: `first` + i is class i; `ignored` and 255 are ignored."""

    classes: tuple[str, ...]
    first: int
    ignored: int | None

    def encode(self, data: bytes, mask: np.ndarray, where: str) -> bytes:
        """A PNG of the class indices, 255 = ignore, of a mask, uint8 [height, width]; its `data` if they are equal.

        Raises UserError for values that are not those of classes.
        """
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
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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
