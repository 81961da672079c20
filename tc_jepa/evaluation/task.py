"""The contract of an evaluation task: what it is given and what it finds.

One file in tasks/ holds one task: its code and its record, named TASK.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import time
from typing import Literal, NamedTuple

import numpy as np

from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.sources import Grounded
from tc_jepa.evaluation.examples import Examples
from tc_jepa.evaluation.features import Arrays
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.scores import Measured, Sweep
from tc_jepa.evaluation.tower import FrozenTower

SHOWN = 8  # test images whose neighbours and label maps are kept to be drawn
# What a task may need beside images. WORDS: a run whose predictor attends to words, and phrases that name objects.
# TOWER: a run with a text tower. CAPTIONS and QUESTIONS: those of images of both splits; TEST_CAPTIONS: of test images.
# VOCABULARY: to write with.
LABELS, MASKS, WORDS, TOWER = "labels", "masks", "words", "tower"
CAPTIONS, TEST_CAPTIONS, QUESTIONS, VOCABULARY = "captions", "captions of test images", "questions", "vocabulary"


class FeatureRequest(NamedTuple):
    """Features of one split that a task reads."""

    split: Literal["train", "test"]
    kinds: tuple[str, ...]  # fields of encoder.EncoderOutput: "pooled", "last_four", "patches"
    whole: bool = False  # images are stretched to squares instead of cropped in the centre
    at_most: int | None = None  # only the first so many examples
    views: int = 0  # random crops of each image, in place of the image
    augmented: bool = False  # as many random crops as evaluation.views says; not computed where that is 0


def train_and_test(*kinds: str, whole: bool = False) -> dict[str, FeatureRequest]:
    """Requests of the same features of both splits, named "train" and "test"."""
    return {split: FeatureRequest(split, kinds, whole) for split in ("train", "test")}


class Score(NamedTuple):
    """A family of scores "NAME/ROW", better when higher: a table in results.md with intervals and chance.

    They are in 0-1, and shown in percent; only CIDEr-D is in 0-10.
    """

    name: str
    about: str  # the sentence above the table
    metric: str = ""  # of all its rows; "": of a label set, accuracy (one class an image) or mAP (any number)
    headline: bool = False  # counts in the report's answer to whether the run learned


class TextSide(NamedTuple):
    """What can read words for an encoder: its run's predictor and text encoder, with phrases to read."""

    reader: FrozenReader
    tokenizer: CaptionTokenizer
    source: Grounded  # the test split


class DecoderSize(NamedTuple):
    """Blocks, channels, and steps of training of a decoder that writes."""

    depth: int
    width: int
    steps: int


class Writing(NamedTuple):
    """With what texts are written about images: a decoder's size, and the vocabulary."""

    size: DecoderSize
    tokenizer: CaptionTokenizer


class TaskInputs(NamedTuple):
    """What a task is run on: one encoder's features and the examples that they are of."""

    features: Mapping[str, Arrays]  # by the names in Task.features, then by kind: [n, ...], with views [n, views, ...]
    train: Examples
    test: Examples
    image_size: int  # of the encoder, in pixels
    text: TextSide | FrozenTower | None = None  # only for a task that needs WORDS, or TOWER
    writing: Writing | None = None  # only for a task that needs VOCABULARY


class Confusion(NamedTuple):
    """How many test examples (pixels, for a segmentation) of each class were given to each class."""

    probe: str  # the score that it belongs to, such as "linear_fast"
    classes: Sequence[str]
    counts: np.ndarray  # int [true, predicted]


class LabelMaps(NamedTuple):
    """Test images labelled by the evaluated encoder's linear head."""

    images: np.ndarray  # int [n], indices into the test source
    predicted: Sequence[np.ndarray]  # uint8 [H, W] each
    truth: Sequence[np.ndarray]  # uint8 [H, W] each
    classes: Sequence[str]


@dataclasses.dataclass
class Details:
    """What is written and drawn beside the scores."""

    sweeps: dict[str, Sweep] = dataclasses.field(default_factory=dict)  # "linear/shape"
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)  # the setting that each sweep chose
    confusions: dict[str, Confusion] = dataclasses.field(default_factory=dict)  # by label set, "segmentation/NAME"
    label_maps: dict[str, LabelMaps] = dataclasses.field(default_factory=dict)  # by segmentation
    neighbours: tuple[np.ndarray, np.ndarray] | None = None  # test images int [n]; each one's nearest of train [n, k]
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # by score: lines about single test images


@dataclasses.dataclass
class Outcome(Details):
    """What a task finds of one encoder."""

    scores: dict[str, Measured] = dataclasses.field(default_factory=dict)  # "knn/shape": gets intervals and gains
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)  # other numbers: "rank/rankme"
    constants: dict[str, float] = dataclasses.field(default_factory=dict)  # the same for any encoder: "chance/shape"


@dataclasses.dataclass
class Findings(Details):
    """What an evaluation finds. The details are of the evaluated encoder alone."""

    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # wall time of each task, and of features

    def keep(self, details: Details) -> None:
        """Adds details; of two of one name the first stays."""
        for name in ("sweeps", "chosen", "confusions", "label_maps", "examples"):
            setattr(self, name, getattr(details, name) | getattr(self, name))
        self.neighbours = self.neighbours or details.neighbours

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall time of the block to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclasses.dataclass(frozen=True)
class Task:
    """An evaluation task. `tasks.TASKS` holds its one-line description."""

    name: str
    run: Callable[[TaskInputs], Outcome]  # fits and scores one encoder; UserError where there are too few examples
    needs: tuple[str, ...] = ()  # of the needs above; (): images alone
    features: Mapping[str, FeatureRequest] = dataclasses.field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    # Numbers "NAME/KEY" that are neither better nor worse when higher: key -> title of a row of the task's own table.
    measures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    about_measures: str = ""  # the text above that table
    during_training: bool = False  # fast and small enough for train.eval_tasks
    context_encoder: bool = False  # also run on a run's context encoder, where another one is evaluated

    @property
    def reads_text(self) -> bool:
        return not {WORDS, TOWER}.isdisjoint(self.needs)

    @property
    def dense(self) -> bool:
        """Whether it is fitted on evaluation.dense_examples, not .train_examples, because it keeps every patch."""
        return any(request.split == "train" and "patches" in request.kinds for request in self.features.values())
