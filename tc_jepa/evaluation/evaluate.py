"""Runs the protocols on several encoders side by side and gathers one flat object of results.

Keys: "linear_fast/shape" with "..._low" and "..._high" (95 % bootstrap over the test examples), "rank/rankme"; the same
under "init/" and "pixels/" for the baselines; "chance/shape"; and "gain_over_init/linear_fast/shape" with its paired
interval. Scores are fractions: macro mAP for tasks with several labels an image, accuracy for the others.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tc_jepa.data.sources import Source
from tc_jepa.errors import UserError
from tc_jepa.evaluation import knn, linear
from tc_jepa.evaluation.encoder import FrozenEncoder, pooled_features
from tc_jepa.evaluation.rank import feature_std, rankme
from tc_jepa.evaluation.scores import difference, measure, Measured, resample_counts, Truth, value_of

PROBES = {"knn": knn.class_scores, "linear_fast": linear.class_scores}  # they need labels
PROTOCOLS = (*PROBES, "rank")
SUBSET_SEED = 0

Features = Mapping[str, np.ndarray]  # pooled features float32 [N, D], by encoder


def check_protocols(names: Sequence[str]) -> None:
    """A UserError for no protocol at all, or one that does not exist."""
    for name in names or [""]:
        if name not in PROTOCOLS:
            raise UserError(f"unknown task {name!r}; the tasks are {', '.join(PROTOCOLS)}")


def evaluate(
    judged: FrozenEncoder,
    baselines: Mapping[str, FrozenEncoder],
    train: Source,
    test: Source,
    protocols: Collection[str],
    *,
    train_examples: int,
    test_examples: int,
) -> dict[str, float]:
    """The flat results of the judged encoder (its keys without a prefix) and of its baselines (prefix "NAME/").

    Probes are fitted on at most `train_examples` of `train`; everything is tested on at most `test_examples` of `test`.
    A UserError where a probe is asked for and the data has no labels, or too few examples.
    """
    probes = [name for name in PROBES if name in protocols]
    if probes and not train.tasks:
        raise UserError(f"{', '.join(probes)} need labels, and the data has none; give --tasks=rank")
    encoders = {"": judged} | {f"{name}/": encoder for name, encoder in baselines.items()}
    chosen = choose(len(test), test_examples)
    test_features = _extract(encoders, test, chosen)
    results = {}
    if probes:
        train_chosen = choose(len(train), train_examples)
        train_features, train_truth = _extract(encoders, train, train_chosen), read_truth(train, train_chosen)
        results |= probe(probes, train_features, train_truth, test_features, read_truth(test, chosen))
    if "rank" in protocols:
        for prefix, features in test_features.items():
            results |= {f"{prefix}rank/rankme": rankme(features), f"{prefix}rank/std": feature_std(features)}
    return results


def probe(
    protocols: Sequence[str],
    train_features: Features,
    train_truth: Mapping[str, Truth],
    test_features: Features,
    test_truth: Mapping[str, Truth],
) -> dict[str, float]:
    """Scores of every encoder ("" is the judged one) and what the judged one gains over each of the others."""
    counts = resample_counts(len(next(iter(test_features.values()))))
    measured: dict[str, Measured] = {}
    for prefix in test_features:
        for protocol in protocols:
            scores = PROBES[protocol](train_features[prefix], train_truth, test_features[prefix])
            for task, truth in test_truth.items():
                measured[f"{prefix}{protocol}/{task}"] = measure(truth, scores[task], counts)
    gains = {
        f"gain_over_{baseline}{protocol}/{task}": difference(
            measured[f"{protocol}/{task}"], measured[f"{baseline}{protocol}/{task}"]
        )
        for baseline in test_features
        if baseline
        for protocol in protocols
        for task in test_truth
    }
    results = {f"chance/{task}": chance(train_truth[task], truth) for task, truth in test_truth.items()}
    for key, score in (measured | gains).items():
        low, high = score.interval
        results |= {key: score.value, f"{key}_low": low, f"{key}_high": high}
    return results


def chance(train: Truth, test: Truth) -> float:
    """What the train set's label frequencies alone score: the most frequent class, or each class's share."""
    frequencies = np.broadcast_to(train.classes.mean(axis=0, dtype=np.float32), test.classes.shape)
    return value_of(test, frequencies)


def read_truth(source: Source, indices: Sequence[int]) -> dict[str, Truth]:
    """The labels of some examples, by task; no image is read."""
    rows = [source.labels(int(index)) for index in indices]
    truth = {}
    for name, task in source.tasks.items():
        labels = np.array([row[name] for row in rows])
        if task.kind == "single":
            labels = np.eye(len(task.classes), dtype=bool)[labels]
        truth[name] = Truth(task.kind, labels)
    return truth


def choose(available: int, at_most: int) -> np.ndarray:
    """A fixed random subset, so that data sorted by class is sampled evenly: int [<= at_most], ascending."""
    order = np.random.default_rng(SUBSET_SEED).permutation(available)
    return np.sort(order[:at_most])


def _extract(encoders: Mapping[str, FrozenEncoder], source: Source, indices: Sequence[int]) -> dict[str, np.ndarray]:
    return dict(zip(encoders, pooled_features(list(encoders.values()), source, indices)))
