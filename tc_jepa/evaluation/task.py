"""The contract of an evaluation task. One file in tasks/ holds one task: its code and its record, named TASK."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Literal, NamedTuple

from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.sources import Grounded
from tc_jepa.evaluation.examples import Examples
from tc_jepa.evaluation.features import Arrays
from tc_jepa.evaluation.findings import Outcome
from tc_jepa.evaluation.reading import FrozenReader

LABELS, MASKS, WORDS = "labels", "masks", "words"
# What a task may need beside images, and what that means to a user.
NEEDS = {
    LABELS: "labels",
    MASKS: "masks",
    WORDS: "a run whose predictor attends to words; scenes, or masks of named classes",
}


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
    """A family of scores "NAME/ROW" in 0-1, better when higher: a table in results.md with intervals and chance."""

    name: str
    about: str  # the sentence above the table
    metric: str = ""  # of all its rows; "": of a label set, accuracy (one class an image) or mAP (any number)
    headline: bool = False  # counts in the report's answer to whether the run learned


class TextSide(NamedTuple):
    """What can read words for an encoder: its run's predictor and text encoder, with phrases to read."""

    reader: FrozenReader
    tokenizer: CaptionTokenizer
    source: Grounded  # the test split


class TaskInputs(NamedTuple):
    """What a task is run on: one encoder's features and the examples that they are of."""

    features: Mapping[str, Arrays]  # by the names in Task.features, then by kind: [n, ...], with views [n, views, ...]
    train: Examples
    test: Examples
    image_size: int  # of the encoder, in pixels
    text: TextSide | None = None  # only for a task that needs WORDS


@dataclasses.dataclass(frozen=True)
class Task:
    """An evaluation task. `tasks.TASKS` holds its one-line description."""

    name: str
    run: Callable[[TaskInputs], Outcome]  # fits and scores one encoder; UserError where there are too few examples
    needs: tuple[str, ...] = ()  # of NEEDS; (): images alone
    features: Mapping[str, FeatureRequest] = dataclasses.field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    # Numbers "NAME/KEY" that are neither better nor worse when higher: key -> title of a row of the task's own table.
    measures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    about_measures: str = ""  # the text above that table
    during_training: bool = False  # fast and small enough for train.eval_tasks
    context_encoder: bool = False  # also run on a run's context encoder, where another one is evaluated

    @property
    def dense(self) -> bool:
        """Whether it is fitted on evaluation.dense_examples, not .train_examples, because it keeps every patch."""
        return any(request.split == "train" and "patches" in request.kinds for request in self.features.values())
