"""Phrases made of the class names of masks, so that grounding can be evaluated on data without phrases."""

import dataclasses

import numpy as np

from tc_jepa.data.images import IGNORED
from tc_jepa.data.sources import Example, Phrase, Source

KIND = "class"
NO_OBJECT = ("background", "other", "void", "unlabeled")  # names of classes that are not objects


@dataclasses.dataclass(frozen=True)
class ClassPhrases:
    """A source with named classes as a Grounded one: a phrase "a NAME" for each visible class, masking all of it."""

    source: Source
    segmentation: str

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.source[index]

    def phrases(self, index: int) -> list[Phrase]:
        mask = self.source.mask(index, self.segmentation)
        return [Phrase(f"a {name}", name, KIND, mask == number) for number, name in self._things(mask)]

    def objects_mask(self, index: int) -> np.ndarray:
        mask = self.source.mask(index, self.segmentation)
        return np.isin(mask, [number for number, _ in self._things(mask)])

    def _things(self, mask: np.ndarray) -> list[tuple[int, str]]:
        names = self.source.segmentations[self.segmentation]
        named = [(n, names[n]) for n in np.unique(mask).tolist() if n != IGNORED]
        return [(n, name) for n, name in named if name.casefold() not in NO_OBJECT]


def named_segmentation(source: Source) -> str | None:
    """The name of the first segmentation whose classes have names. Numbers do not count as names."""
    named = (name for name, classes in source.segmentations.items() if not all(x.isdigit() for x in classes))
    return next(named, None)
