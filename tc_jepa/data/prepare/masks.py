"""The classes that the values of the user's masks stand for."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np

from tc_jepa.data.images import IGNORED
from tc_jepa.data.prepare import texts
from tc_jepa.data.prepare.pictures import Mask
from tc_jepa.errors import UserError

PNG = ".png"


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """What the values of masks stand for: `first` + i is class i; `ignored` and 255 are ignored."""

    classes: tuple[str, ...]
    first: int
    ignored: int | None

    def indices(self, mask: np.ndarray, where: str) -> np.ndarray:
        """uint8 [height, width]: the class indices of a mask, 255 = ignore. Raises UserError for other values."""
        last = self.first + len(self.classes) - 1
        counted = (mask != IGNORED) & (True if self.ignored is None else mask != self.ignored)
        wrong = counted & ((mask < self.first) | (mask > last))
        if wrong.any():
            raise UserError(
                f"{where} contains {mask[wrong][0]}, but the {len(self.classes)} classes are {self.first} to {last}; "
                "correct it or --classes, or give --first_class, or --ignore_index for a value to ignore"
            )
        return np.where(counted, mask - np.uint8(self.first), np.uint8(IGNORED))

    def encode(self, mask: Mask, where: str) -> bytes:
        """A PNG of `indices`: the original file if its values are the indices."""
        indices = self.indices(mask.indices, where)
        unchanged = np.array_equal(indices, mask.indices)
        return mask.data if unchanged else cv2.imencode(PNG, indices)[1].tobytes()


def read_mask_values(classes: str, first: int, ignored: int | None) -> MaskValues:
    """Reads a file with one class name per line; the first names the value `first`. Raises UserError if invalid."""
    path = Path(classes)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"--classes={path} cannot be read ({error.strerror}); give a file with one class name per line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--classes={path} is not UTF-8; give a text file with one class name per line") from error
    if not lines:
        raise UserError(f"--classes={path} is empty; write one class name per line, in the order of the values")
    numbers: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        texts.class_name(name, f"{path}:{number}")
        if name in numbers:
            raise UserError(f"{path}:{number} repeats {name!r} of line {numbers[name]}; class names must be unique")
        numbers[name] = number
    if first + len(lines) > IGNORED:
        raise UserError(
            f"{path} has {len(lines)} lines; with --first_class={first} at most {IGNORED - first} fit below 255"
        )
    if ignored is not None and first <= ignored < first + len(lines):
        raise UserError(
            f"--ignore_index={ignored} is also the value of {lines[ignored - first]!r} in {path}; give the value of "
            "the first line with --first_class, or leave --ignore_index out"
        )
    return MaskValues(tuple(lines), first, ignored)
