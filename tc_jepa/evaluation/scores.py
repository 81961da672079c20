"""Metrics of class scores with their uncertainty: accuracy, average precision, bootstrap over the test examples.

Every metric takes `counts`, float32 [N, R]: how often each of the N test examples occurs in each of R resamples. A
column of ones is the test set itself, so that the value and its resamples come from one code path.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tc_jepa.errors import UserError

RESAMPLES = 1000
SEED = 0
CONFIDENCE = 0.95

Kind = Literal["single", "multi"]
# The score of each setting on the held-out train examples, by (name without the learning rate, learning rate).
Sweep = Mapping[tuple[str, float], float]


class Truth(NamedTuple):
    """The labels of one label set: one class an example (`single`) or any number of them (`multi`)."""

    kind: Kind
    classes: np.ndarray  # bool [N, C], one-hot or multi-hot


class Measured(NamedTuple):
    """A score, or a difference of two, with its value on each bootstrap resample of the test set."""

    value: float
    resampled: np.ndarray  # float [R], NaN where a resample has nothing to score

    @property
    def interval(self) -> tuple[float, float]:
        """The percentile bootstrap interval that holds `CONFIDENCE` of the resamples."""
        tail = 50.0 * (1.0 - CONFIDENCE)
        low, high = np.nanpercentile(self.resampled, (tail, 100.0 - tail))
        return float(low), float(high)


def value_of(truth: Truth, class_scores_NxC: np.ndarray) -> float:
    """Accuracy for a `single` label set, macro mAP for a `multi` one."""
    whole = np.ones((len(truth.classes), 1), np.float32)
    return float(METRICS[truth.kind](class_scores_NxC, truth.classes, whole)[0])


def measure(truth: Truth, class_scores_NxC: np.ndarray, counts_NxR: np.ndarray) -> Measured:
    """The value of the score and of each resample.

    Resamples of mAP are shifted so that their mean is the value. A positive that is drawn twice counts as two hits at
    one rank, which raises the average precision of rare classes in every resample; the interval could miss the value.
    """
    value = value_of(truth, class_scores_NxC)
    resampled = METRICS[truth.kind](class_scores_NxC, truth.classes, counts_NxR)
    if truth.kind == "multi":
        resampled = resampled - (np.nanmean(resampled) - value)
    return Measured(value, resampled)


def difference(first: Measured, second: Measured) -> Measured:
    """first - second, paired: both must have been measured on the same test examples with the same `counts`."""
    return Measured(first.value - second.value, first.resampled - second.resampled)


def mean(scores: Sequence[Measured]) -> Measured:
    """The mean of scores that were measured on the same test examples with the same `counts`."""
    return Measured(
        float(np.mean([score.value for score in scores])), np.mean([score.resampled for score in scores], axis=0)
    )


def mean_of_images(values_P: np.ndarray, image_P: np.ndarray, counts_NxR: np.ndarray) -> Measured:
    """The mean of P values, of which an image has any number, resampled over images. `image_P`: the row of each."""
    images = len(counts_NxR)
    total = np.bincount(image_P, values_P, minlength=images)
    count = np.bincount(image_P, minlength=images)
    drawn = count @ counts_NxR
    return Measured(float(values_P.mean()), np.where(drawn > 0, (total @ counts_NxR) / np.maximum(drawn, 1.0), np.nan))


def resample_counts(examples: int, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Draws of `examples` out of `examples` with replacement: counts float32 [examples, resamples]."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(examples, size=(resamples, examples))
    return np.stack([np.bincount(draw, minlength=examples) for draw in draws], axis=1).astype(np.float32)


def accuracy(class_scores_NxC: np.ndarray, truth_NxC: np.ndarray, counts_NxR: np.ndarray) -> np.ndarray:
    """The share of examples whose highest score is the true class: [R]."""
    correct = np.take_along_axis(truth_NxC, class_scores_NxC.argmax(axis=1)[:, None], axis=1)[:, 0]
    return correct.astype(np.float32) @ counts_NxR / counts_NxR.sum(axis=0)


def mean_average_precision(class_scores_NxC: np.ndarray, truth_NxC: np.ndarray, counts_NxR: np.ndarray) -> np.ndarray:
    """Macro mAP, [R]: the mean over classes, leaving out the classes without a positive in the (resampled) test set.

    NaN for a resample without a positive. Raises UserError where the test set itself has none.
    """
    present = truth_NxC.any(axis=0)
    if not present.any():
        raise UserError(f"no class has a positive among {len(truth_NxC)} examples to score on; give more examples")
    columns = [
        average_precision(scores, truth, counts_NxR)
        for scores, truth in zip(class_scores_NxC.T[present], truth_NxC.T[present])
    ]
    defined = np.isfinite(columns)
    classes = defined.sum(axis=0)
    return np.where(classes > 0, np.where(defined, columns, 0.0).sum(axis=0) / np.maximum(classes, 1), np.nan)


def average_precision(scores_N: np.ndarray, truth_N: np.ndarray, counts_NxR: np.ndarray) -> np.ndarray:
    """The mean over positives of the precision at their score, [R]; NaN where a resample has no positive.

    There is at least one positive. Examples of equal score are retrieved together (kNN votes are full of ties):
    constant scores give the share of positives, whatever the order of the examples.
    """
    order = np.argsort(-scores_N, kind="stable")
    falling, truth = -scores_N[order], truth_N[order]
    last_of_tie = np.searchsorted(falling, falling[truth], side="right") - 1
    # Counts are summed between positives first: of a rare class, that leaves few rows to accumulate.
    ends, tie = np.unique(last_of_tie, return_inverse=True)
    between = np.add.reduceat(counts_NxR[order[: ends[-1] + 1]], np.append(0, ends[:-1] + 1), axis=0)
    retrieved = np.cumsum(between, axis=0)[tie]
    weights = counts_NxR[order[truth]]
    hits = np.cumsum(weights, axis=0)[np.cumsum(truth)[last_of_tie] - 1]
    # Nothing is retrieved only where the positive itself is not in the resample: its weight is 0.
    precision = hits / np.maximum(retrieved, 1.0)
    positives = weights.sum(axis=0)
    return np.where(positives > 0, (weights * precision).sum(axis=0) / np.maximum(positives, 1.0), np.nan)


METRICS = {"single": accuracy, "multi": mean_average_precision}
