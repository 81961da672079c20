"""Scores against scikit-learn's, and intervals against what they should hold."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tc_jepa.errors import UserError
from tc_jepa.evaluation import scores
from tc_jepa.evaluation.scores import Truth


def problem(examples=60, classes=3, seed=0, share=0.3):
    """Scores with many ties, and labels that they say something about."""
    rng = np.random.default_rng(seed)
    truth = rng.random((examples, classes)) < share
    return np.round(rng.normal(size=(examples, classes)) + truth).astype(np.float32), truth


def test_average_precision_of_resamples_is_scikit_learns_with_weights():
    class_scores, truth = problem()
    counts = scores.resample_counts(60, resamples=5)
    ours = scores.average_precision(class_scores[:, 0], truth[:, 0], counts)
    theirs = [average_precision_score(truth[:, 0], class_scores[:, 0], sample_weight=column) for column in counts.T]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_one_class_only_scores_chance_whatever_the_order():
    _, truth = problem()
    falling = truth[np.argsort(~truth[:, 0])]  # all positives first: reading ties in order would give 100 %
    assert scores.value_of(Truth("multi", falling[:, :1]), np.zeros((60, 1))) == pytest.approx(truth[:, 0].mean())


def test_map_leaves_out_classes_without_a_positive():
    class_scores, truth = problem()
    truth[:, 1] = False
    kept = [average_precision_score(truth[:, i], class_scores[:, i]) for i in (0, 2)]
    assert scores.value_of(Truth("multi", truth), class_scores) == pytest.approx(np.mean(kept), rel=1e-5)
    with pytest.raises(UserError, match="60 examples"):
        scores.value_of(Truth("multi", np.zeros_like(truth)), class_scores)


def test_a_resample_that_lost_a_class_averages_the_others():
    truth = np.array([[True, False], [False, True], [False, True]])
    class_scores = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    without_the_first = np.array([[0.0], [2.0], [1.0]], np.float32)
    assert scores.mean_average_precision(class_scores, truth, without_the_first) == 1.0


def test_resamples_without_a_positive_do_not_widen_the_interval():
    truth = np.arange(4)[:, None] == 0  # about a third of the resamples miss the one positive
    measured = scores.measure(Truth("multi", truth), truth.astype(np.float32), scores.resample_counts(4))
    assert measured.interval == (1.0, 1.0)


def test_accuracy_of_a_resample_counts_repeats():
    class_scores, truth = problem(classes=4)
    truth = np.eye(4, dtype=bool)[truth.argmax(axis=1)]
    counts = scores.resample_counts(60, resamples=3)
    repeated = np.repeat(np.arange(60), counts[:, 1].astype(int))
    expected = np.mean(class_scores[repeated].argmax(axis=1) == truth[repeated].argmax(axis=1))
    assert scores.accuracy(class_scores, truth, counts)[1] == pytest.approx(expected)


def test_the_interval_of_accuracy_is_that_of_a_proportion():
    correct = np.arange(1000) < 700
    truth = Truth("single", np.eye(2, dtype=bool)[np.zeros(1000, int)])
    measured = scores.measure(truth, np.stack([correct, ~correct], axis=1), scores.resample_counts(1000))
    half_width = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert measured.value == pytest.approx(0.7)
    np.testing.assert_allclose(measured.interval, (0.7 - half_width, 0.7 + half_width), atol=0.004)


def test_the_interval_of_rare_classes_holds_the_value():
    class_scores, truth = problem(examples=500, classes=100, share=0.02)
    class_scores += np.random.default_rng(1).normal(size=class_scores.shape)
    measured = scores.measure(Truth("multi", truth), class_scores, scores.resample_counts(500))
    low, high = measured.interval
    assert low < measured.value < high
    unshifted = scores.mean_average_precision(class_scores, truth, scores.resample_counts(500))
    assert np.percentile(unshifted, 2.5) > measured.value  # what the shift mends


def test_a_paired_difference_is_surer_than_its_parts():
    class_scores, truth = problem(examples=300)
    counts = scores.resample_counts(300)
    one = scores.measure(Truth("multi", truth), class_scores, counts)
    other = scores.measure(Truth("multi", truth), class_scores + 0.1 * np.arange(300)[:, None] / 300, counts)
    assert scores.difference(one, one).interval == (0.0, 0.0)
    widths = [np.subtract(*measured.interval[::-1]) for measured in (scores.difference(one, other), one)]
    assert widths[0] < 0.5 * widths[1]


def test_answers_of_other_examples_and_of_one_class_alone_score_chance():
    rng = np.random.default_rng(0)
    single = Truth("single", np.eye(4, dtype=bool)[rng.choice(4, 2000, p=(0.4, 0.3, 0.2, 0.1))])
    multi = Truth("multi", rng.random((2000, 4)) < (0.4, 0.3, 0.2, 0.1))
    order = rng.permutation(2000)
    for truth, chance in ((single, 0.4**2 + 0.3**2 + 0.2**2 + 0.1**2), (multi, 0.25)):
        right = truth.classes.astype(np.float32)
        assert scores.value_of(truth, right) == 1.0
        assert scores.value_of(truth, right[order]) == pytest.approx(chance, abs=0.03)
        assert scores.value_of(truth, np.ones_like(right) * (0, 1, 0, 0)) == pytest.approx(
            truth.classes[:, 1].mean() if truth.kind == "single" else truth.classes.mean(), abs=1e-6
        )
