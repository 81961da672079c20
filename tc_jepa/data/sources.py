"""The interfaces between data and everything that reads it: datasets, their splits, and the examples of a split."""

import abc
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, TYPE_CHECKING

import numpy as np

from tc_jepa.errors import UserError

if TYPE_CHECKING:  # launch.prepare_data sets OpenCV's log level before OpenCV is imported
    from tc_jepa.data.images import EncodedImage
    from tc_jepa.data.transforms import Box

TRAIN, VALIDATION, TEST = SPLITS = ("train", "val", "test")
SCENES = "scenes"  # the dataset that is drawn on the fly, where a path is asked for

Caption = str | np.ndarray  # a text; or the word vectors [words, E] that a text encoder computed from it
Labels = Mapping[str, int | np.ndarray]  # by task, as LabelSet says


class BadRecord(UserError):
    """A record that is damaged, beside which others can be read. The message names its file and its place in it."""


class Example(NamedTuple):
    """One image with its captions, before any augmentation."""

    image: "np.ndarray | EncodedImage"  # uint8 [height, width, 3], RGB; encoded where a source was opened so
    captions: tuple[Caption, ...]  # candidates; empty when the image has none
    labels: Labels = {}  # only from a Labelled source, for methods that learn from them


class Drawn(abc.ABC):
    """An Example that is drawn when asked for, as a whole or through a window: sharp, and with captions and labels of
    what is seen in it. A crop of any other Example has the captions and labels of the whole image.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the pixels in which windows are given; the image may have fewer."""

    @property
    @abc.abstractmethod
    def image(self) -> np.ndarray: ...

    @property
    @abc.abstractmethod
    def captions(self) -> tuple[Caption, ...]: ...

    @property
    @abc.abstractmethod
    def labels(self) -> Labels: ...

    @abc.abstractmethod
    def through(self, window: "Box", size: int) -> "Drawn":
        """What is seen through a window, stretched to `size` x `size` pixels."""


@dataclasses.dataclass(frozen=True)
class LabelSet:
    """A classification task that the labels of a dataset define.

    `single`: one class per image, and a label is an int. `multi`: any number, and a label is bool [len(classes)].
    """

    kind: Literal["single", "multi"]
    classes: tuple[str, ...]


class Captioned(Protocol):
    """Random access to captioned images: all that training needs. Implementations pickle, for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example | Drawn:
        """The image and its candidate captions; 0 <= index < len(self)."""


class Source(Captioned, Protocol):
    """One split of a dataset: captioned images, with the labels that an evaluation needs."""

    tasks: Mapping[str, LabelSet]
    segmentations: Mapping[str, tuple[str, ...]]  # name -> classes in the order of their indices, () if unnamed
    has_questions: bool

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """One label for each of `tasks`. Does not read the image."""

    def file(self, index: int) -> str:
        """The image's file name in the original data, or SPLIT/INDEX if it has none."""

    def mask(self, index: int, name: str) -> np.ndarray:
        """uint8 [height, width]: the class indices of one of `segmentations`; 255 means ignore."""

    def questions(self, index: int) -> "list[Question]":
        """All questions about an image; may be empty. Does not read the image."""


class Dataset(Protocol):
    """A named collection of splits: what `data.path` or --data stands for. Opening one reads no images."""

    name: str  # the path or name that the user gave

    def splits(self) -> Mapping[str, int]:
        """The number of images of each split."""

    def open(self, split: str) -> Source:
        """One of `splits`. Raises UserError for any other."""

    def vocabulary_path(self) -> str | None:
        """The SentencePiece model for the captions that comes with the dataset, if there is one."""

    def identity(self) -> dict[str, Any]:
        """The dataset's content as JSON values: they differ when the images, captions or labels differ."""


class Subset:
    """The examples of a source at some indices, in their order: a Source."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, indices
        self.tasks, self.segmentations, self.has_questions = source.tasks, source.segmentations, source.has_questions

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

    def questions(self, index: int) -> "list[Question]":
        return self._source.questions(int(self._indices[index]))


class Labelled:
    """A source whose examples have their labels, for methods that learn from them: a sources.Captioned."""

    def __init__(self, source: Source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example | Drawn:
        example = self._source[index]
        return example if isinstance(example, Drawn) else example._replace(labels=self._source.labels(index))


class Phrase(NamedTuple):
    """A caption that describes one object of an image, and the word in it that names the object."""

    caption: str
    word: str
    kind: str  # what the word describes, such as "shape"
    mask: np.ndarray  # bool [height, width]: where the object is visible


class Grounded(Captioned, Protocol):
    """Captioned images for which it is known which words name which object."""

    def phrases(self, index: int) -> list[Phrase]:
        """All phrases of an image; empty if no word names a single object."""

    def objects_mask(self, index: int) -> np.ndarray:
        """bool [height, width]: where any object is visible."""


class Question(NamedTuple):
    """A question about an image, with the answers that people gave: one, or several that may differ."""

    text: str
    answers: tuple[str, ...]
    kind: str  # what it asks for, such as "colour"
