"""The tasks that answer questions with labels from frozen features, in one form."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tc_jepa.evaluation import knn, linear, lowshot
from tc_jepa.evaluation.features import Arrays
from tc_jepa.evaluation.scores import Sweep, Truth


class Answers(NamedTuple):
    """What a probe says to one task."""

    draws: Sequence[np.ndarray]  # class scores [test examples, C] of each fit; several where train examples are drawn
    sweep: Sweep = {}
    chosen: str = ""  # the setting that answers


Said = dict[tuple[str, str], Answers]  # by score, such as "knn_10", and task
Truths = Mapping[str, Truth]  # of the train examples, by task


class Probe(NamedTuple):
    kinds: tuple[str, ...]  # of features that it reads
    answer: Callable[[Arrays, Truths, Arrays], Said]  # (train features, their truth, test features)
    dense: bool = False  # fitted on dense_examples, not train_examples, because it keeps every patch


def _knn(train: Arrays, truths: Truths, test: Arrays) -> Said:
    found = knn.neighbours(train["pooled"], test["pooled"])
    by_name = {"knn": found, f"knn_{knn.FEWER}": found.nearest(knn.FEWER)}
    return {
        (name, task): Answers([knn.vote(nearest, truth.classes)])
        for name, nearest in by_name.items()
        for task, truth in truths.items()
    }


def _linear_fast(train: Arrays, truths: Truths, test: Arrays) -> Said:
    found = linear.class_scores(train["pooled"], truths, test["pooled"])
    return {("linear_fast", task): Answers([scores]) for task, scores in found.items()}


def _lowshot(train: Arrays, truths: Truths, test: Arrays) -> Said:
    return {
        (f"lowshot_{100 * fraction:g}", task): Answers(
            lowshot.class_scores(train["pooled"], truth, test["pooled"], fraction)
        )
        for fraction in lowshot.FRACTIONS
        for task, truth in truths.items()
    }


PROBES = {
    "knn": Probe(("pooled",), _knn),
    "linear_fast": Probe(("pooled",), _linear_fast),
    "lowshot": Probe(("pooled",), _lowshot),
}
