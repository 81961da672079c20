"""From class scores to an Outcome: what all tasks that answer label sets share."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tc_jepa.evaluation.scores import mean, measure, Sweep, Truth, value_of
from tc_jepa.evaluation.task import Confusion, Outcome, SHOWN, TaskInputs

SHOWN_NEIGHBOURS = 5


class Answer(NamedTuple):
    """What a task answers for one label set."""

    draws: Sequence[np.ndarray]  # class scores [test examples, C] of each fit; several where train examples are drawn
    sweep: Sweep = {}
    chosen: str = ""  # the setting that the sweep chose
    nearest: np.ndarray | None = None  # of the train examples to each test example, int [test examples, k]


def outcome(inputs: TaskInputs, answers: Mapping[tuple[str, str], Answer]) -> Outcome:
    """Scores of all answers, by (score, label set): ("knn_10", "shape"); their mean where there are several draws."""
    found, test = Outcome(), inputs.test
    for (score, name), answer in answers.items():
        key, truth = f"{score}/{name}", test.truth[name]
        values = [measure(truth, class_scores, test.counts) for class_scores in answer.draws]
        found.scores[key] = mean(values)
        if len(values) > 1:
            found.numbers[f"spread/{key}"] = float(np.std([value.value for value in values], ddof=1))
        elif truth.kind == "single" and name not in found.confusions:
            classes = test.source.tasks[name].classes
            found.confusions[name] = Confusion(score, classes, confusion(truth, answer.draws[0]))
        if answer.sweep:
            found.sweeps[key], found.chosen[key] = answer.sweep, answer.chosen
        if answer.nearest is not None:
            found.neighbours = test.rows[:SHOWN], inputs.train.rows[answer.nearest[:SHOWN, :SHOWN_NEIGHBOURS]]
    found.constants = {f"chance/{name}": chance(inputs.train.truth[name], truth) for name, truth in test.truth.items()}
    return found


def chance(train: Truth, test: Truth) -> float:
    """What the train set's label frequencies alone score: the most frequent class, or each class's share."""
    frequencies = np.broadcast_to(train.classes.mean(axis=0, dtype=np.float32), test.classes.shape)
    return value_of(test, frequencies)


def confusion(truth: Truth, class_scores_NxC: np.ndarray) -> np.ndarray:
    """Of a `single` label set: int [true, predicted]."""
    C = truth.classes.shape[1]
    cells = truth.classes.argmax(axis=1) * C + class_scores_NxC.argmax(axis=1)
    return np.bincount(cells, minlength=C * C).reshape(C, C)
