"""Runs the protocols on several encoders side by side and gathers one flat object of results.

Keys: "linear_fast/shape" with "..._low" and "..._high" (95 % bootstrap over the test examples), "rank/rankme"; the same
under "init/" and "pixels/" for the baselines; "chance/shape"; and "gain_over_init/linear_fast/shape" with its paired
interval. Scores are fractions: macro mAP for tasks with several labels an image, accuracy for the others, mean IoU for
"segmentation/NAME", pointing accuracy for "grounding/KIND".
"""

from collections.abc import Collection, Mapping, Sequence
import functools

import numpy as np

from tc_jepa.data.captions import CaptionTokenizer
from tc_jepa.data.sources import Grounded, Source
from tc_jepa.errors import UserError
from tc_jepa.evaluation import grounding, knn, linear, segmentation
from tc_jepa.evaluation.encoder import FrozenEncoder, patch_features, pooled_features, read_masks
from tc_jepa.evaluation.rank import feature_std, rankme
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.scores import difference, mean_of_images, measure, Measured, resample_counts, Truth, value_of

PROBES = {"knn": knn.class_scores, "linear_fast": linear.class_scores}  # they need labels
RANK, SEGMENTATION, GROUNDING = "rank", "segmentation", "grounding"
PROTOCOLS = (*PROBES, RANK, SEGMENTATION, GROUNDING)
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
    dense_examples: int,
) -> dict[str, float]:
    """The flat results of the judged encoder (its keys without a prefix) and of its baselines (prefix "NAME/").

    Probes are fitted on at most `train_examples` of `train`, segmentation, which keeps every patch, on at most
    `dense_examples`; everything is tested on at most `test_examples` of `test`. "grounding" needs more than an encoder:
    see `ground`. A UserError where the data has no labels or masks that are asked for, or too few examples.
    """
    probes = [name for name in PROBES if name in protocols]
    if probes and not train.tasks:
        raise UserError(f"{', '.join(probes)} need labels, and the data has none; give --tasks=rank")
    if SEGMENTATION in protocols and not train.segmentations:
        raise UserError("segmentation needs masks, and the data has none; leave it out of --tasks")
    encoders = {"": judged} | {f"{name}/": encoder for name, encoder in baselines.items()}
    chosen = choose(len(test), test_examples)
    results = {}
    if SEGMENTATION in protocols:
        results |= segment(encoders, train, choose(len(train), dense_examples), test, chosen)
    if not {*probes, RANK} & set(protocols):
        return results
    test_features = _extract(encoders, test, chosen)
    if probes:
        train_chosen = choose(len(train), train_examples)
        train_features, train_truth = _extract(encoders, train, train_chosen), read_truth(train, train_chosen)
        results |= probe(probes, train_features, train_truth, test_features, read_truth(test, chosen))
    if RANK in protocols:
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
    results = {f"chance/{task}": chance(train_truth[task], truth) for task, truth in test_truth.items()}
    return results | with_gains(measured, list(test_features))


def with_gains(measured: Mapping[str, Measured], prefixes: Sequence[str]) -> dict[str, float]:
    """All scores with their intervals, and what the judged encoder's gain over the baselines' of the same name."""
    baselines = [prefix for prefix in prefixes if prefix]
    own = [key for key in measured if not key.startswith(tuple(baselines))] if baselines else list(measured)
    gains = {
        f"gain_over_{prefix}{key}": difference(measured[key], measured[f"{prefix}{key}"])
        for prefix in baselines
        for key in own
        if f"{prefix}{key}" in measured
    }
    results = {}
    for key, score in {**measured, **gains}.items():
        low, high = score.interval
        results |= {key: score.value, f"{key}_low": low, f"{key}_high": high}
    return results


def segment(
    encoders: Mapping[str, FrozenEncoder],
    train: Source,
    train_indices: Sequence[int],
    test: Source,
    test_indices: Sequence[int],
) -> dict[str, float]:
    """ "segmentation/NAME" for each of the sources' segmentations, IoU of each class beside it, gains and chance."""
    image_size = next(iter(encoders.values())).image_size
    masks = {
        name: [
            read_masks(source, indices, image_size, name)
            for source, indices in ((train, train_indices), (test, test_indices))
        ]
        for name in train.segmentations
    }
    counts = resample_counts(len(test_indices))
    measured: dict[str, Measured] = {}
    others: dict[str, float] = {}
    for prefix, encoder in encoders.items():
        features = [patch_features(encoder, *part) for part in ((train, train_indices), (test, test_indices))]
        for name, labels in masks.items():
            classes = class_names(train.segmentations[name], *labels)
            parts = [segmentation.Labelled(*part) for part in zip(features, labels)]
            confusion = segmentation.confusions(*parts, len(classes))
            measured[f"{prefix}{SEGMENTATION}/{name}"] = segmentation.measure(confusion, counts)
            ious = zip(classes, segmentation.class_ious(confusion))
            others |= {f"{prefix}{SEGMENTATION}/{name}/{label}": float(iou) for label, iou in ious if np.isfinite(iou)}
            others[f"chance/{SEGMENTATION}/{name}"] = segmentation.miou(segmentation.commonest(confusion))
    return others | with_gains(measured, list(encoders))


def class_names(names: Sequence[str], *masks: np.ndarray) -> Sequence[str]:
    """The classes' names; where the data gives none, their indices. UserError for a mask with an unnamed class."""
    highest = max(int(mask[mask != segmentation.IGNORED].max(initial=0)) for mask in masks)
    if names and highest >= len(names):
        raise UserError(f"a mask holds class {highest}, and only {len(names)} classes are named; prepare it anew")
    return names or [str(number) for number in range(highest + 1)]


def ground(
    readers: Mapping[str, FrozenReader],
    tokenizer: CaptionTokenizer,
    test: Grounded,
    *,
    image_size: int,
    test_examples: int,
) -> dict[str, float]:
    """ "grounding/KIND" of the judged run's reader ("") and its baselines', gains and chance.

    "on_objects/..." and "any_object/..." tell whether a word finds its object, or just objects: see grounding.py.
    """
    chosen = choose(len(test), test_examples)
    counts = resample_counts(len(chosen))
    measured, others = {}, {}
    for prefix, reader in readers.items():
        pointed = grounding.point(reader, tokenizer, test, chosen, image_size)
        for kind in dict.fromkeys(pointed.kind.tolist()):
            rows = pointed.kind == kind
            mean = functools.partial(mean_of_images, image_P=pointed.image[rows], counts_NxR=counts)
            measured[f"{prefix}{GROUNDING}/{kind}"] = mean(pointed.score[rows])
            others[f"{prefix}on_objects/{GROUNDING}/{kind}"] = mean(pointed.on_objects[rows]).value
            others[f"chance/{GROUNDING}/{kind}"] = mean(pointed.chance[rows]).value
            others[f"any_object/{GROUNDING}/{kind}"] = mean(pointed.any_object[rows]).value
    return others | with_gains(measured, list(readers))


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
