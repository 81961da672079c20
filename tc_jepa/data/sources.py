"""What the trainer and the evaluation ask of data: random access by index, and nothing else."""

from collections.abc import Mapping
import dataclasses
from typing import Literal, NamedTuple, Protocol

import numpy as np

TRAIN, VALIDATION, TEST = SPLITS = ("train", "val", "test")


class Example(NamedTuple):
    """One captioned image, before any augmentation."""

    image: np.ndarray  # uint8 [height, width, 3], RGB
    captions: tuple[str, ...]  # candidates; empty when the image has none


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about an image that labels answer.

    `single`: one class an image, its label is an int. `multi`: any number of classes, its label is a bool array
    [len(classes)].
    """

    kind: Literal["single", "multi"]
    classes: tuple[str, ...]


class Source(Protocol):
    """Random access to one split of captioned images. Implementations pickle, so that worker processes can hold one."""

    tasks: Mapping[str, Task]
    has_masks: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """The image and its candidate captions; 0 <= index < len(self)."""

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """One label for each of `tasks`, without reading the image."""

    def file(self, index: int) -> str:
        """What the image is called where it came from; SPLIT/INDEX where it has no name."""

    def mask(self, index: int) -> np.ndarray:
        """uint8 [height, width] of class indices, 255 = ignore; only where `has_masks`."""
