"""What tasks and evaluations find: plain data for the runner, the results and the report's pictures."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import time
from typing import NamedTuple

import numpy as np

from tc_jepa.evaluation.scores import Measured, Sweep

SHOWN = 8  # test images whose neighbours and label maps are kept to be drawn


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
        for field in dataclasses.fields(Details):
            ours, theirs = getattr(self, field.name), getattr(details, field.name)
            setattr(
                self, field.name, {**theirs, **ours} if isinstance(ours, dict) else theirs if ours is None else ours
            )

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the wall time of the block to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
