"""Phrases that name the classes of masks, so that words can be looked for in data that nobody wrote phrases for."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from tc_jepa.data.images import IGNORED
from tc_jepa.data.sources import Example, Phrase, Source, Task

KIND = "class"
NO_OBJECT = ("background", "other", "void", "unlabeled")  # names of classes that are no thing to look for


@dataclasses.dataclass(frozen=True)
class ClassPhrases:
    """A source with a segmentation of named classes as a Grounded one: of an image, "a NAME" for each class in sight.

    The mask of a phrase is all that is of the class, be it one object or several.
    """

    source: Source
    segmentation: str

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.source.tasks

    @property
    def segmentations(self) -> Mapping[str, tuple[str, ...]]:
        return self.source.segmentations

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        return self.source.labels(index)

    def file(self, index: int) -> str:
        return self.source.file(index)

    def mask(self, index: int, name: str) -> np.ndarray:
        return self.source.mask(index, name)

    def phrases(self, index: int) -> list[Phrase]:
        mask = self.mask(index, self.segmentation)
        return [Phrase(f"a {name}", name, KIND, mask == number) for number, name in self._things(mask)]

    def objects_mask(self, index: int) -> np.ndarray:
        mask = self.mask(index, self.segmentation)
        return np.isin(mask, [number for number, _ in self._things(mask)])

    def _things(self, mask: np.ndarray) -> list[tuple[int, str]]:
        names = self.segmentations[self.segmentation]
        return [
            (n, names[n]) for n in np.unique(mask).tolist() if n != IGNORED and names[n].casefold() not in NO_OBJECT
        ]


def named_segmentation(source: Source) -> str | None:
    """The first segmentation whose classes have names, which numbers are not."""
    named = (name for name, classes in source.segmentations.items() if not all(x.isdigit() for x in classes))
    return next(named, None)
