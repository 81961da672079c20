"""What the values of the user's masks mean."""

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
class Meaning:
    """What the values of masks mean: `first` + i is class i; `ignored` and 255 count nowhere."""

    classes: tuple[str, ...]
    first: int
    ignored: int | None

    def indices(self, mask: np.ndarray, where: str) -> np.ndarray:
        """uint8 [height, width] of a mask's values -> of class indices, 255 = ignore.

        UserError for a value that means nothing.
        """
        last = self.first + len(self.classes) - 1
        counted = (mask != IGNORED) & (True if self.ignored is None else mask != self.ignored)
        wrong = counted & ((mask < self.first) | (mask > last))
        if wrong.any():
            raise UserError(
                f"{where} holds {mask[wrong][0]}, and the {len(self.classes)} classes are {self.first} to {last}; "
                "mend it or --classes, or give --first_class, or --ignore_index for a value that counts nowhere"
            )
        return np.where(counted, mask - np.uint8(self.first), np.uint8(IGNORED))

    def stored(self, mask: Mask, where: str) -> bytes:
        """The PNG of `indices`: the file as it is, where they are its values."""
        indices = self.indices(mask.indices, where)
        unchanged = np.array_equal(indices, mask.indices)
        return mask.data if unchanged else cv2.imencode(PNG, indices)[1].tobytes()


def read_meaning(classes: str, first: int, ignored: int | None) -> Meaning:
    """From a file with a class's name a line: the first is the value `first`. UserError for a bad list of classes."""
    path = Path(classes)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"--classes={path} cannot be read ({error.strerror}); give a file with a name a line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--classes={path} is not UTF-8; give a text file of names") from error
    if not lines:
        raise UserError(f"--classes={path} is empty; give the classes' names, one a line, in the order of their values")
    numbers: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        texts.class_name(name, f"{path}:{number}")
        if name in numbers:
            raise UserError(f"{path}:{number} repeats {name!r} of line {numbers[name]}; give every class its own name")
        numbers[name] = number
    if first + len(lines) > IGNORED:
        raise UserError(f"{path} has {len(lines)} lines; classes from {first} on are at most {IGNORED - first}")
    if ignored is not None and first <= ignored < first + len(lines):
        raise UserError(
            f"--ignore_index={ignored} is the value of {lines[ignored - first]!r} in {path}; say with --first_class "
            "which value the first line has, or leave --ignore_index out"
        )
    return Meaning(tuple(lines), first, ignored)
