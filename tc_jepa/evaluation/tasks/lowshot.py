"""lowshot: the linear_fast probe where labels are few, on several draws of them."""

import numpy as np

from tc_jepa.evaluation.scores import Truth
from tc_jepa.evaluation.tasks import linear

FRACTIONS = (0.01, 0.1)  # of the labels
DRAWS = 5
SEED = 0
FEWEST = linear.VALIDATION_STRIDE + 1  # examples, which linear_fast needs


def class_scores(
    train_features: np.ndarray, truth: Truth, test_features: np.ndarray, fraction: float
) -> list[np.ndarray]:
    """Logits float32 [test examples, C] of a probe fitted on each of DRAWS draws of a fraction of the labels.

    Nothing where the fraction is too small to say anything: fewer than two labels a class in the mean, or a draw
    without a positive among those that are fitted, or among those that choose the strength.
    """
    draws = [draw(truth, fraction, np.random.default_rng((SEED, number))) for number in range(DRAWS)]
    if truth.kind == "single" and fraction * len(truth.classes) < 2 * truth.classes.shape[1]:
        return []
    for rows in draws:
        held_out = linear.validation_examples("lowshot", len(rows))
        if not all(truth.classes[part].any() for part in (rows[held_out], rows[~held_out])):
            return []
    return [
        linear.class_scores(train_features[rows], {"": Truth(truth.kind, truth.classes[rows])}, test_features)[""]
        for rows in draws
    ]


def draw(truth: Truth, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of some train examples, in random order, without repetition.

    Of a `single` task, the fraction of each class, of which one at least; of a `multi` task, of all examples. Not fewer
    than FEWEST, where there are as many.
    """
    order = rng.permutation(len(truth.classes))
    if truth.kind == "multi":
        return order[: max(round(fraction * len(order)), FEWEST)]
    of_class = truth.classes[order].argmax(axis=1)
    counts = np.bincount(of_class, minlength=truth.classes.shape[1])
    wanted = np.maximum(np.rint(fraction * counts), 1)
    first = _ranks(of_class) < wanted[of_class]
    rows = np.concatenate([order[first], order[~first]])
    return rng.permutation(rows[: max(int(first.sum()), FEWEST)])


def _ranks(values: np.ndarray) -> np.ndarray:
    """How many equal values come before each."""
    order = np.argsort(values, kind="stable")
    starts = np.searchsorted(values[order], values[order])
    ranks = np.empty(len(values), int)
    ranks[order] = np.arange(len(values)) - starts
    return ranks
