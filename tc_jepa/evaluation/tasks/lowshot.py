"""lowshot: linear_fast on a small fraction of the labels, for several draws of them."""

import itertools

from absl import logging
import numpy as np
import pandas as pd

from tc_jepa.evaluation import labels
from tc_jepa.evaluation.examples import validation_examples, VALIDATION_STRIDE
from tc_jepa.evaluation.scores import Truth
from tc_jepa.evaluation.task import LABELS, Outcome, Score, Task, TaskInputs, train_and_test
from tc_jepa.evaluation.tasks import linear_fast

FRACTIONS = (0.01, 0.1)  # of the labels
DRAWS = 5
SEED = 0
FEWEST = VALIDATION_STRIDE + 1  # examples, which linear_fast needs


def run(inputs: TaskInputs) -> Outcome:
    """Scores "lowshot_1/LABELS" and "lowshot_10/LABELS", and "spread/...", their standard deviation over draws."""
    train, test = (inputs.features[split]["pooled"] for split in ("train", "test"))
    answers = {}
    for fraction, (label_set, truth) in itertools.product(FRACTIONS, inputs.train.truth.items()):
        name = f"lowshot_{100 * fraction:g}"
        draws = class_scores(train, truth, test, fraction)
        if draws:
            answers[name, label_set] = labels.Answer(draws)
        else:
            few = f"{fraction:.0%} of {len(truth.classes)} train examples are too few for its classes"
            logging.warning("%s/%s: left out, because %s; give more evaluation.train_examples", name, label_set, few)
    return labels.outcome(inputs, answers)


TASK = Task(
    "lowshot",
    run,
    needs=(LABELS,),
    features=train_and_test("pooled"),
    scores=tuple(
        Score(
            f"lowshot_{100 * part:g}",
            f"linear_fast on {part:.0%} of the labels, mean over {DRAWS} draws.".replace("%", " %"),
        )
        for part in FRACTIONS
    ),
    during_training=True,
)


def class_scores(
    train_features: np.ndarray, truth: Truth, test_features: np.ndarray, fraction: float
) -> list[np.ndarray]:
    """Logits float32 [test examples, C] of a classifier for each of DRAWS draws of a fraction of the labels.

    An empty list where the fraction is too small: fewer than two labels a class on average, or a draw without a
    positive among the examples that are fitted or among those that choose the strength.
    """
    draws = [draw(truth, fraction, np.random.default_rng((SEED, number))) for number in range(DRAWS)]
    if truth.kind == "single" and fraction * len(truth.classes) < 2 * truth.classes.shape[1]:
        return []
    for rows in draws:
        held_out = validation_examples("lowshot", len(rows))
        if not all(truth.classes[part].any() for part in (rows[held_out], rows[~held_out])):
            return []
    return [
        linear_fast.class_scores(train_features[rows], {"": Truth(truth.kind, truth.classes[rows])}, test_features)[""]
        for rows in draws
    ]


def draw(truth: Truth, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Rows of some train examples, in random order, without repetition.

    Of a `single` label set, the fraction of each class, and at least one of each; of a `multi` one, the fraction of all
    examples. At least FEWEST, where there are as many.
    """
    order = rng.permutation(len(truth.classes))
    if truth.kind == "multi":
        return order[: max(round(fraction * len(order)), FEWEST)]
    of_class = truth.classes[order].argmax(axis=1)
    counts = np.bincount(of_class, minlength=truth.classes.shape[1])
    wanted = np.maximum(np.rint(fraction * counts), 1)
    first = pd.Series(of_class).groupby(of_class).cumcount().to_numpy() < wanted[of_class]
    rows = np.concatenate([order[first], order[~first]])
    return rng.permutation(rows[: max(int(first.sum()), FEWEST)])
