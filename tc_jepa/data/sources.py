"""What the trainer and the evaluation ask of data: random access by index, and nothing else."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Literal, NamedTuple, Protocol

import numpy as np

TRAIN, VALIDATION, TEST = SPLITS = ("train", "val", "test")
SCENES = "scenes"  # where data is named that is no folder: drawn on the fly

Caption = str | np.ndarray  # a text; or a text encoder's vectors of its words, [words, E]


class Example(NamedTuple):
    """One captioned image, before any augmentation."""

    image: np.ndarray  # uint8 [height, width, 3], RGB
    captions: tuple[Caption, ...]  # candidates; empty when the image has none


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about an image that labels answer.

    `single`: one class an image, its label is an int. `multi`: any number of classes, its label is a bool array
    [len(classes)].
    """

    kind: Literal["single", "multi"]
    classes: tuple[str, ...]


class Captioned(Protocol):
    """Random access to captioned images: all that training asks for. Implementations pickle, for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The image and its candidate captions; 0 <= index < len(self)."""


class Source(Captioned, Protocol):
    """One split of captioned images with the labels that an evaluation asks for."""

    tasks: Mapping[str, Task]
    segmentations: Mapping[str, tuple[str, ...]]  # name -> classes, in the order of their indices; () where unnamed

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """One label for each of `tasks`, without reading the image."""

    def file(self, index: int) -> str:
        """What the image is called where it came from; SPLIT/INDEX where it has no name."""

    def mask(self, index: int, name: str) -> np.ndarray:
        """uint8 [height, width] of the class indices of one of `segmentations`, none but the named; 255 = ignore."""


class Subset:
    """The examples of a source at some indices, in their order: a Source."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, indices
        self.tasks, self.segmentations = source.tasks, source.segmentations

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._indices[index])]

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        return self._source.labels(int(self._indices[index]))

    def file(self, index: int) -> str:
        return self._source.file(int(self._indices[index]))

    def mask(self, index: int, name: str) -> np.ndarray:
        return self._source.mask(int(self._indices[index]), name)


class Phrase(NamedTuple):
    """A caption that is true of one object of an image, and the word of it that says which."""

    caption: str
    word: str
    kind: str  # what the word tells, such as "shape"
    mask: np.ndarray  # bool [height, width]: where the object is seen


class Grounded(Source, Protocol):
    """A source that knows which words name which object."""

    def phrases(self, index: int) -> list[Phrase]:
        """All phrases of an image; none where no word names one object alone."""

    def objects_mask(self, index: int) -> np.ndarray:
        """bool [height, width]: where any object is seen."""
