"""What an evaluation found, for those who write and draw it."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import time
from typing import NamedTuple

import numpy as np

from tc_jepa.evaluation.scores import Sweep


class Confusion(NamedTuple):
    """How many test examples of each class a probe gives to each class."""

    probe: str
    classes: tuple[str, ...]
    counts: np.ndarray  # int [true, predicted]


class LabelMaps(NamedTuple):
    """Test images labelled by the judged encoder's linear head."""

    images: np.ndarray  # int [n], indices of the test source
    predicted: Sequence[np.ndarray]  # uint8 [H, W] each
    truth: Sequence[np.ndarray]  # alike
    classes: Sequence[str]


@dataclasses.dataclass
class Findings:
    """What an evaluation found."""

    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # wall time of each task, and of features
    sweeps: dict[str, Sweep] = dataclasses.field(default_factory=dict)  # of the judged: "linear/shape"
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)  # the setting that each sweep chose
    confusions: dict[str, Confusion] = dataclasses.field(default_factory=dict)  # by task
    label_maps: dict[str, LabelMaps] = dataclasses.field(default_factory=dict)  # by segmentation
    neighbours: tuple[np.ndarray, np.ndarray] | None = None  # test images int [n]; each one's nearest of train [n, k]

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
