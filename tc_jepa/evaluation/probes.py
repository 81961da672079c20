"""The tasks that answer questions with labels from frozen features, in one form."""

from collections.abc import Callable, Mapping, Sequence
import itertools
from typing import NamedTuple

from absl import logging
import numpy as np

from tc_jepa.evaluation import linear_bank
from tc_jepa.evaluation.features import Arrays
from tc_jepa.evaluation.scores import Sweep, Truth
from tc_jepa.evaluation.tasks import attentive, knn, linear, lowshot

LAYERS = {"pooled": "last", "last_four": "last_four"}  # kinds of features, and what linear_bank calls them
VIEWS = "_views"  # behind the name of a kind: the same of random views of the images, [V, N, D]


class Answers(NamedTuple):
    """What a probe says to one task."""

    draws: Sequence[np.ndarray]  # class scores [test examples, C] of each fit; several where train examples are drawn
    sweep: Sweep = {}
    chosen: str = ""  # the setting that answers
    nearest: np.ndarray | None = None  # of the train examples to each test example, int [test examples, k]


Said = dict[tuple[str, str], Answers]  # by score, such as "knn_10", and task
Truths = Mapping[str, Truth]  # of the train examples, by task


class Probe(NamedTuple):
    kinds: tuple[str, ...]  # of features that it reads
    answer: Callable[[Arrays, Truths, Arrays], Said]  # (train features, their truth, test features)
    augmented: bool = False  # reads VIEWS too, where there are any
    dense: bool = False  # fitted on dense_examples, not train_examples, because it keeps every patch


def _knn(train: Arrays, truths: Truths, test: Arrays) -> Said:
    found = knn.neighbours(train["pooled"], test["pooled"])
    by_name = {"knn": found, f"knn_{knn.FEWER}": found.nearest(knn.FEWER)}
    return {
        (name, task): Answers([knn.vote(nearest, truth.classes)], nearest=nearest.indices)
        for name, nearest in by_name.items()
        for task, truth in truths.items()
    }


def _linear(train: Arrays, truths: Truths, test: Arrays) -> Said:
    kinds = [kind for kind in LAYERS if kind in train]
    plain, tested = ({LAYERS[kind]: features[kind] for kind in kinds} for features in (train, test))
    # Without views the image itself is the only one.
    views = {LAYERS[k]: train[k + VIEWS] if k + VIEWS in train else train[k][None] for k in kinds}
    found = linear_bank.class_scores(views, plain, truths, tested)

    def named(head: linear_bank.Head) -> str:
        norm = ", BatchNorm" if head.batch_norm else ""
        return f"{head.features.replace('_', ' ')}{norm}, decay {head.weight_decay:g}"

    return {
        ("linear", task): Answers(
            [fitted.scores],
            {(named(head), head.rate): value for head, value in fitted.sweep.items()},
            f"{named(fitted.chosen)}, rate {fitted.chosen.rate:g}",
        )
        for task, fitted in found.items()
    }


def _attentive(train: Arrays, truths: Truths, test: Arrays) -> Said:
    found = attentive.class_scores(train["patches"], truths, test["patches"])
    return {
        ("attentive", task): Answers(
            [fitted.scores],
            {(f"decay {setting.weight_decay:g}", setting.rate): value for setting, value in fitted.sweep.items()},
            f"rate {fitted.chosen.rate:g}, decay {fitted.chosen.weight_decay:g}",
        )
        for task, fitted in found.items()
    }


def _linear_fast(train: Arrays, truths: Truths, test: Arrays) -> Said:
    found = linear.class_scores(train["pooled"], truths, test["pooled"])
    return {("linear_fast", task): Answers([scores]) for task, scores in found.items()}


def _lowshot(train: Arrays, truths: Truths, test: Arrays) -> Said:
    said = {}
    for fraction, (task, truth) in itertools.product(lowshot.FRACTIONS, truths.items()):
        name = f"lowshot_{100 * fraction:g}"
        draws = lowshot.class_scores(train["pooled"], truth, test["pooled"], fraction)
        if draws:
            said[name, task] = Answers(draws)
        else:
            about = f"{fraction:.0%} of {len(truth.classes)} train examples are too few for its classes"
            logging.warning("%s/%s: left out, because %s; give more evaluation.train_examples", name, task, about)
    return said


PROBES = {
    "knn": Probe(("pooled",), _knn),
    "linear": Probe(("pooled", "last_four"), _linear, augmented=True),
    "linear_fast": Probe(("pooled",), _linear_fast),
    "attentive": Probe(("patches",), _attentive, dense=True),
    "lowshot": Probe(("pooled",), _lowshot),
}
