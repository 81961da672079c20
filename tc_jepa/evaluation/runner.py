"""Runs the tasks on several encoders side by side and gathers what they score.

Scores are one flat object. "linear_fast/shape" with "..._low" and "..._high" (95 % bootstrap over the test examples),
"rank/rankme"; the same under "init/", "pixels/" and "compared/" for the encoders beside it; "chance/shape"; and
"gain_over_init/linear_fast/shape" with its paired interval. They are fractions: macro mAP for tasks with several labels
an image, accuracy for the others, mean IoU for "segmentation/NAME", "segmentation_knn/NAME" and "grounding_iou/KIND",
pointing accuracy for "grounding/KIND".
"""

from collections.abc import Collection, Mapping, Sequence
import itertools

import numpy as np

from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.sources import Grounded, Source
from tc_jepa.data.transforms import resize_mask
from tc_jepa.errors import UserError
from tc_jepa.evaluation.encoder import FrozenEncoder
from tc_jepa.evaluation.features import FeatureStore, Part
from tc_jepa.evaluation.findings import Confusion, Findings, LabelMaps
from tc_jepa.evaluation.probes import PROBES, Said, Truths, VIEWS
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.scores import (
    difference,
    mean,
    mean_of_images,
    measure,
    Measured,
    resample_counts,
    Truth,
    value_of,
)
from tc_jepa.evaluation.tasks import grounding, rank, segmentation
from tc_jepa.evaluation.views import Views

RANK, SEGMENTATION, GROUNDING = "rank", "segmentation", "grounding"
PROTOCOLS = (*PROBES, RANK, SEGMENTATION, GROUNDING)
SUBSET_SEED = 0
RANK_PATCH_IMAGES = 200  # whose patches are decomposed, at most
SHOWN = 8  # test images whose neighbours and label maps are kept to be looked at
SHOWN_NEIGHBOURS = 5
CONFUSION_OF = ("linear", "linear_fast", "knn", "attentive")  # the first of these that ran


def check_protocols(names: Sequence[str]) -> None:
    """A UserError for no protocol at all, or one that does not exist."""
    for name in names or [""]:
        if name not in PROTOCOLS:
            raise UserError(f"unknown task {name!r}; the tasks are {', '.join(PROTOCOLS)}")


def evaluate(
    judged: FrozenEncoder,
    others: Mapping[str, FrozenEncoder],
    train: Source,
    test: Source,
    protocols: Collection[str],
    *,
    train_examples: int,
    test_examples: int,
    dense_examples: int,
    views: int = 0,
    store: FeatureStore | None = None,
    context: FrozenEncoder | None = None,
) -> Findings:
    """Judges an encoder (its keys without a prefix) beside others (prefix "NAME/").

    Probes are fitted on at most `train_examples` of `train`, those that keep every patch on at most `dense_examples`;
    everything is tested on at most `test_examples` of `test`. "linear" is trained on `views` random crops of each train
    image in turn; 0: on the image. `store` keeps features on disk meanwhile. `context` is the judged run's context
    encoder, of which only the rank is told. "grounding" needs more than an encoder: see `ground`. A UserError where the
    data has no labels or masks that are asked for, classes that differ between the splits, or too few examples.
    """
    store = store or FeatureStore()
    probes = [name for name in PROBES if name in protocols]
    check_data(train, test, probes, SEGMENTATION in protocols)
    encoders = {"": judged} | {f"{name}/": encoder for name, encoder in others.items()}
    chosen = choose(len(test), test_examples)
    findings, measured = Findings(), {}
    for dense in (False, True):
        of_kind = [name for name in probes if PROBES[name].dense == dense]
        if of_kind:
            rows = choose(len(train), dense_examples if dense else train_examples)
            measured |= _probe(findings, of_kind, encoders, store, (train, rows), (test, chosen), views)
    if SEGMENTATION in protocols:
        rows = choose(len(train), dense_examples)
        measured |= _segment(findings, encoders, store, (train, rows), (test, chosen))
    if RANK in protocols:
        _rank(findings, encoders | ({"context/": context} if context else {}), store, test, chosen)
    findings.scores |= with_gains(measured, list(encoders))
    return findings


def check_data(train: Source, test: Source, probes: Sequence[str], segmentation: bool) -> None:
    """UserError where the splits lack what the tasks need, or do not ask the same."""
    if probes and not train.tasks:
        raise UserError(f"{', '.join(probes)} need labels, and the data has none; give --tasks=rank")
    if segmentation and not train.segmentations:
        raise UserError("segmentation needs masks, and the data has none; leave it out of --tasks")
    if dict(train.tasks) != dict(test.tasks) or dict(train.segmentations) != dict(test.segmentations):
        raise UserError("the splits that are fitted and tested on have other classes; prepare them as one dataset")


Split = tuple[Source, np.ndarray]  # a split, and which of its examples


def _probe(
    findings: Findings,
    protocols: Sequence[str],
    encoders: Mapping[str, FrozenEncoder],
    store: FeatureStore,
    train: Split,
    test: Split,
    views: int,
) -> dict[str, Measured]:
    """Scores of every encoder; the judged one's sweeps, confusions and neighbours go to `findings`."""
    kinds = list(dict.fromkeys(kind for name in protocols for kind in PROBES[name].kinds))
    fitted_on = "dense" if PROBES[protocols[0]].dense else "train"
    parts = {
        "train": Part(*train, kinds, f"{'-'.join(kinds)}-{fitted_on}"),
        "test": Part(*test, kinds, f"{'-'.join(kinds)}-test"),
    }
    if views and any(PROBES[name].augmented for name in protocols):
        crops = Views(*train, views)
        parts["views"] = Part(crops, range(len(crops)), ["pooled", "last_four"], f"views-{fitted_on}")
    with findings.timed("features"):
        for part in parts.values():
            store.fill(encoders, part)
    truths, answers = read_truth(*train), read_truth(*test)
    counts = resample_counts(len(test[1]))
    measured: dict[str, Measured] = {}
    for prefix, encoder in encoders.items():
        # One encoder after another: the features of all, of many images or with patches, fill the memory.
        with findings.timed("features"):
            features = {name: store.read({prefix: encoder}, part)[prefix] for name, part in parts.items()}
        for kind, x_NVxD in features.pop("views", {}).items():  # an image's views lie one after another
            features["train"][f"{kind}{VIEWS}"] = x_NVxD.reshape(len(train[1]), views, -1).swapaxes(0, 1)
        said: Said = {}
        for protocol in protocols:
            with findings.timed(protocol):
                said |= PROBES[protocol].answer(features["train"], truths, features["test"])
        for (score, task), answer in said.items():
            values = [measure(answers[task], scores, counts) for scores in answer.draws]
            measured[f"{prefix}{score}/{task}"] = mean(values)
            if len(values) > 1:
                spread = np.std([value.value for value in values], ddof=1)
                findings.scores[f"{prefix}spread/{score}/{task}"] = float(spread)
        if not prefix:
            _keep(findings, said, train, test, answers)
    for task, truth in answers.items():  # of dense probes, fitted on fewer examples, only where no others ran
        findings.scores.setdefault(f"chance/{task}", chance(truths[task], truth))
    return measured


def _keep(findings: Findings, said: Said, train: Split, test: Split, truths: Truths) -> None:
    """What the judged encoder's probes chose, the neighbours of some images, a confusion for each task of one class."""
    for (score, task), answer in said.items():
        if answer.sweep:
            findings.sweeps[f"{score}/{task}"] = answer.sweep
            findings.chosen[f"{score}/{task}"] = answer.chosen
        if answer.nearest is not None:
            findings.neighbours = test[1][:SHOWN], train[1][answer.nearest[:SHOWN, :SHOWN_NEIGHBOURS]]
    for score, task in itertools.product(CONFUSION_OF, truths):
        if (score, task) in said and truths[task].kind == "single" and task not in findings.confusions:
            counts = confusion(truths[task], said[score, task].draws[0])
            findings.confusions[task] = Confusion(score, test[0].tasks[task].classes, counts)


def confusion(truth: Truth, class_scores_NxC: np.ndarray) -> np.ndarray:
    """Of a `single` task: int [true, predicted]."""
    C = truth.classes.shape[1]
    cells = truth.classes.argmax(axis=1) * C + class_scores_NxC.argmax(axis=1)
    return np.bincount(cells, minlength=C * C).reshape(C, C)


def with_gains(measured: Mapping[str, Measured], prefixes: Sequence[str]) -> dict[str, float]:
    """All scores with their intervals, and what the judged encoder's gain over the others' of the same name."""
    others = [prefix for prefix in prefixes if prefix]
    own = [key for key in measured if not key.startswith(tuple(others))] if others else list(measured)
    gains = {
        f"gain_over_{prefix}{key}": difference(measured[key], measured[f"{prefix}{key}"])
        for prefix in others
        for key in own
        if f"{prefix}{key}" in measured
    }
    results = {}
    for key, score in {**measured, **gains}.items():
        low, high = score.interval
        results |= {key: score.value, f"{key}_low": low, f"{key}_high": high}
    return results


def _segment(
    findings: Findings, encoders: Mapping[str, FrozenEncoder], store: FeatureStore, train: Split, test: Split
) -> dict[str, Measured]:
    """ "segmentation/NAME" and "segmentation_knn/NAME" for each of the sources' segmentations; in `findings` the IoU of
    each class, chance, the judged encoder's sweep and some of its maps. Every encoder sees images whole, as squares of
    its own size, and is fitted on masks alike; all are tested on the masks as they are."""
    counts = resample_counts(len(test[1]))
    parts = [
        Part(*split, ["patches"], f"whole-{name}", whole=True) for name, split in (("dense", train), ("test", test))
    ]
    sides = {encoder.image_size for encoder in encoders.values()}
    with findings.timed("features"):
        for part in parts:
            store.fill(encoders, part)
    with findings.timed(SEGMENTATION):
        truths = {name: read_masks(*test, name) for name in test[0].segmentations}
        labels = {name: {side: read_square_masks(*train, name, side) for side in sides} for name in truths}
        named = test[0].segmentations.items()
        classes = {name: class_names(names, *truths[name], *labels[name].values()) for name, names in named}
    measured: dict[str, Measured] = {}
    for prefix, encoder in encoders.items():
        with findings.timed("features"):
            features, test_features = (store.read({prefix: encoder}, part)[prefix]["patches"] for part in parts)
        with findings.timed(SEGMENTATION):
            for name, truth in truths.items():
                fitted_on, C = segmentation.Labelled(features, labels[name][encoder.image_size]), len(classes[name])
                shapes = [mask.shape for mask in truth]
                fitted = segmentation.segment(fitted_on, test_features, C, shapes)
                nearest = segmentation.nearest(fitted_on, test_features, C, shapes)
                for score, predicted in ((SEGMENTATION, fitted.predicted), (f"{SEGMENTATION}_knn", nearest)):
                    key = f"{prefix}{score}/{name}"
                    found = segmentation.confusions(predicted, truth, C)
                    measured[key] = segmentation.measure(found, counts)
                    ious = zip(classes[name], segmentation.class_ious(found))
                    findings.scores |= {f"{key}/{label}": float(iou) for label, iou in ious if np.isfinite(iou)}
                    if not prefix:  # the same for all, but for the size of the train masks
                        by_chance = segmentation.commonest(found, fitted_on.labels)
                        findings.scores[f"chance/{score}/{name}"] = segmentation.miou(by_chance)
                if not prefix:
                    findings.sweeps[f"{SEGMENTATION}/{name}"] = fitted.sweep
                    findings.chosen[f"{SEGMENTATION}/{name}"] = fitted.chosen
                    maps = (test[1][:SHOWN], fitted.predicted[:SHOWN], truth[:SHOWN])
                    findings.label_maps[name] = LabelMaps(*maps, classes[name])
    return measured


def read_masks(source: Source, indices: Sequence[int], name: str) -> list[np.ndarray]:
    """One of the source's segmentations, uint8 [H, W] each, as large as the images."""
    return [source.mask(int(index), name) for index in indices]


def read_square_masks(source: Source, indices: Sequence[int], name: str, side: int) -> np.ndarray:
    """The same stretched as the images are: uint8 [n, side, side]."""
    return np.stack([resize_mask(source.mask(int(index), name), (side, side)) for index in indices])


def class_names(names: Sequence[str], *masks: np.ndarray) -> Sequence[str]:
    """The classes' names; where the data gives none, their indices. A source's masks hold none but the named."""
    highest = max(int(mask[mask != segmentation.IGNORED].max(initial=0)) for mask in masks)
    return names or [str(number) for number in range(highest + 1)]


def _rank(
    findings: Findings,
    encoders: Mapping[str, FrozenEncoder],
    store: FeatureStore,
    test: Source,
    chosen: np.ndarray,
) -> None:
    """ "rank/..." of every encoder: of the pooled test features, of some images' patch features without the mean at
    their position ("rank/patch_..."), and LiDAR over random crops."""
    if len(chosen) < 2:
        raise UserError(f"rank has only {len(chosen)} test image; give it at least 2")
    with findings.timed("features"):
        pooled = store.read(encoders, Part(test, chosen, ["pooled"], "pooled-rank"))
        patches = store.read(encoders, Part(test, chosen[:RANK_PATCH_IMAGES], ["patches"], "patches-rank"))
        crops = Views(test, chosen[: rank.LIDAR_IMAGES], rank.LIDAR_VIEWS)
        views = store.read(encoders, Part(crops, range(len(crops)), ["pooled"], "views-rank"))
    with findings.timed(RANK):
        for prefix in encoders:
            spread = {
                "rankme": rank.rankme(pooled[prefix]["pooled"]),
                "participation": rank.participation_ratio(pooled[prefix]["pooled"]),
                "std": rank.feature_std(pooled[prefix]["pooled"]),
                "lidar": rank.lidar(views[prefix]["pooled"].reshape(-1, rank.LIDAR_VIEWS, encoders[prefix].width)),
            }
            centred = rank.position_centred(patches[prefix]["patches"])
            spread |= {
                "patch_rankme": rank.rankme(centred),
                "patch_participation": rank.participation_ratio(centred),
                "patch_std": rank.feature_std(centred),
            }
            findings.scores |= {f"{prefix}{RANK}/{name}": value for name, value in spread.items()}


def ground(
    readers: Mapping[str, FrozenReader],
    tokenizer: CaptionTokenizer,
    test: Grounded,
    *,
    image_size: int,
    test_examples: int,
) -> dict[str, float]:
    """ "grounding/KIND" and "grounding_iou/KIND" of the judged run's reader ("") and its baselines', gains and chance.

    "on_objects/..." and "any_object/..." tell whether a word finds its object, or just objects: see grounding.py.
    """
    chosen = choose(len(test), test_examples)
    counts = resample_counts(len(chosen))
    measured, others = {}, {}
    for prefix, reader in readers.items():
        pointed = grounding.point(reader, tokenizer, test, chosen, image_size)
        for kind in dict.fromkeys(pointed.kind.tolist()):
            rows = pointed.kind == kind
            image = pointed.image[rows]
            measured[f"{prefix}{GROUNDING}/{kind}"] = mean_of_images(pointed.score[rows], image, counts)
            others[f"{prefix}on_objects/{GROUNDING}/{kind}"] = float(pointed.on_objects[rows].mean())
            others[f"chance/{GROUNDING}/{kind}"] = float(pointed.chance[rows].mean())
            others[f"any_object/{GROUNDING}/{kind}"] = float(pointed.any_object[rows].mean())
            overlap = grounding.overlap(pointed, kind)
            measured[f"{prefix}{GROUNDING}_iou/{kind}"] = mean_of_images(overlap.iou, overlap.image, counts)
            others[f"chance/{GROUNDING}_iou/{kind}"] = float(overlap.everything.mean())
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
