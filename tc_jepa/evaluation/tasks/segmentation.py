"""segmentation: a linear layer on frozen patch features, and the nearest patches of the train images.

The logits of the patches are enlarged bilinearly to the size of the labels (TC-JEPA App. C.3). Images are not cropped
but stretched to squares, as in CAPI (facebookresearch/capi, eval_segmentation.py: eval_model); unlike there, the test
labels keep their own size. A small bank of heads, one for each learning rate and weight decay of AdamW, is trained
together; a fifth of the train images chooses the head that is tested. Pixels of class IGNORED are left out everywhere.
A training step reads a coarse grid of pixels, shifted at random, because neighbouring pixels are nearly equal; testing
reads all.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.data.images import IGNORED
from tc_jepa.errors import UserError
from tc_jepa.evaluation import heads
from tc_jepa.evaluation.encoder import full_precision
from tc_jepa.evaluation.examples import Examples, validation_examples
from tc_jepa.evaluation.rows import moments, Rows
from tc_jepa.evaluation.scores import Measured, Sweep
from tc_jepa.evaluation.task import Confusion, LabelMaps, MASKS, Outcome, Score, SHOWN, Task, TaskInputs, train_and_test
from tc_jepa.evaluation.tasks import knn

# Of AdamW: (learning rate, which falls to 0 on a cosine; weight decay, not of the bias).
SETTINGS = tuple((rate, decay) for rate in (1e-3, 3e-3, 1e-2, 3e-2) for decay in (1e-4, 1e-1))
STEPS, BATCH = 400, 32  # images
SIDE = 30  # pixels a side of the grid, about
SEED = 0
TEST_CHUNK = 64  # images whose patches search for neighbours at once
MOST_LOGITS = 2**26  # at once; a larger label map is made in strips
ROUNDED_TO = 64  # pixels, to which sides of label maps are padded, so that not every size is compiled for
NEAREST_OF = 10_000  # train patches among which the nearest are searched, at most


def run(inputs: TaskInputs) -> Outcome:
    """Scores "segmentation/NAME" and "segmentation_knn/NAME" for each of the data's segmentations.

    Every encoder is fitted on squares of its own image size; all are tested on the masks at their own sizes.
    """
    found, counts = Outcome(), inputs.test.counts
    features, test_features = (inputs.features[split]["patches"] for split in ("train", "test"))
    for name in inputs.test.source.segmentations:
        truth, classes = inputs.test.masks(name), class_names(name, inputs.train, inputs.test)
        train, C = Labelled(features, inputs.train.square_masks(name, inputs.image_size)), len(classes)
        shapes = [mask.shape for mask in truth]
        fitted = segment(train, test_features, C, shapes)
        by_neighbours = nearest(train, test_features, C, shapes)
        for score, predicted in (("segmentation", fitted.predicted), ("segmentation_knn", by_neighbours)):
            key, counted = f"{score}/{name}", confusions(predicted, truth, C)
            total = counted.sum(axis=0)
            found.scores[key] = measure(counted, counts)
            ious = zip(classes, class_ious(total))
            found.numbers |= {f"{key}/{label}": float(iou) for label, iou in ious if np.isfinite(iou)}
            found.constants[f"chance/{key}"] = chance(total.sum(axis=1), train.labels)
            found.confusions[key] = Confusion(score, classes, total)
        found.sweeps[f"segmentation/{name}"], found.chosen[f"segmentation/{name}"] = fitted.sweep, fitted.chosen
        shown = inputs.test.rows[:SHOWN], fitted.predicted[:SHOWN], truth[:SHOWN]
        found.label_maps[name] = LabelMaps(*shown, classes)
    return found


TASK = Task(
    "segmentation",
    run,
    needs=(MASKS,),
    features=train_and_test("patches", whole=True),
    scores=(
        Score("segmentation", "A linear layer on patch features, enlarged bilinearly.", "mIoU", headline=True),
        Score("segmentation_knn", "The 20 nearest patches of the train images, by cosine.", "mIoU"),
    ),
)


def class_names(name: str, train: Examples, test: Examples) -> Sequence[str]:
    """The names of a segmentation's classes; where the data gives none, their indices up to the highest in a mask."""
    names = test.source.segmentations[name]
    return names or [str(number) for number in range(1 + max(x.highest_class(name) for x in (train, test)))]


class Labelled(NamedTuple):
    """Square images as patch features and label maps."""

    features: np.ndarray | Rows  # float32 [n, N, D], N = side * side
    labels: np.ndarray  # uint8 [n, H, H]


class PatchClassifier(NamedTuple):
    """logits of a patch = features @ weights + bias."""

    weights: jax.Array  # float32 [D, classes]
    bias: jax.Array  # float32 [classes]


class Segmented(NamedTuple):
    """The labels of the test images, and how the head was chosen."""

    predicted: list[np.ndarray]  # uint8 [H, W] each
    sweep: Sweep
    chosen: str


Shapes = Sequence[tuple[int, int]]  # of label maps, (height, width) each


def segment(train: Labelled, test_features: np.ndarray | Rows, classes: int, shapes: Shapes) -> Segmented:
    """Labels the test images, whose features are [n, N, D], by the best head of a bank that is fitted on train images.

    Features are read batch by batch. The squares that the encoder read are stretched to maps of `shapes`. Raises
    UserError where there are too few train images, or where no pixel of those that fit or choose has a class.
    """
    held_out = validation_examples("segmentation", len(train.features))
    check_counted(train.labels[~held_out])
    mean, deviation = moments(Rows.of(train.features))

    def standardised(features: np.ndarray | Rows) -> Rows:
        return Rows.of(features).map(lambda x: (x - mean) / (deviation + np.float32(1e-6)))

    features = standardised(train.features)
    bank = _fit(Labelled(features.select(~held_out), train.labels[~held_out]), classes)
    chosen = Labelled(features.select(held_out), train.labels[held_out])
    own = [labels.shape for labels in chosen.labels]
    labelled = (_label(head, chosen.features, own) for head in bank)
    values = [float(miou(confusions(x, chosen.labels, classes).sum(axis=0))) for x in labelled]
    best = int(np.argmax(values))
    predicted = _label(bank[best], standardised(test_features), shapes)
    sweep = {(f"decay {decay:g}", rate): value for (rate, decay), value in zip(SETTINGS, values)}
    return Segmented(predicted, sweep, f"rate {SETTINGS[best][0]:g}, decay {SETTINGS[best][1]:g}")


def nearest(train: Labelled, test_features: np.ndarray | Rows, classes: int, shapes: Shapes) -> list[np.ndarray]:
    """Labels of the test images, uint8 [H, W] of `shapes`, without training.

    The nearest train patches vote for the classes of a patch, by the shares of their pixels. The grid of patches must
    divide the sides of the train labels.
    """
    P, D = train.features.shape[1:]
    test_features = Rows.of(test_features)
    shares = patch_shares(train.labels, classes, round(P**0.5)).reshape(-1, classes)
    rows = np.flatnonzero(shares.sum(axis=1))  # patches with a pixel that counts
    if len(rows) > NEAREST_OF:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, NEAREST_OF, replace=False))
    features, shares = _patches(Rows.of(train.features), rows), shares[rows]
    most_votes = PatchClassifier(jnp.eye(classes), jnp.zeros(classes))
    maps = []
    for start in range(0, len(test_features), TEST_CHUNK):
        part = test_features[start : start + TEST_CHUNK]
        votes = knn.vote(knn.neighbours(features, part.reshape(-1, D)), shares)
        maps += _label(most_votes, votes.reshape(len(part), P, classes), shapes[start : start + TEST_CHUNK])
    return maps


def _patches(features_nxNxD: Rows, chosen: np.ndarray) -> np.ndarray:
    """Patches of all images by their ascending positions in [n * N]: float32 [chosen, D]."""
    images, places = np.divmod(chosen, features_nxNxD.shape[1])
    found = []
    for number, features_NxD in enumerate(features_nxNxD):
        first, last = np.searchsorted(images, (number, number + 1))
        found.append(features_NxD[places[first:last]])
    return np.concatenate(found)


def patch_shares(labels: np.ndarray, classes: int, side: int) -> np.ndarray:
    """The share of each class among the pixels of each patch that are not IGNORED: float32 [n, N, classes].

    From labels [n, H, W]. Zero for a patch without such a pixel.
    """
    n, H, W = labels.shape
    blocks = labels.reshape(n, side, H // side, side, W // side).transpose(0, 1, 3, 2, 4).reshape(n, side * side, -1)
    counts = np.stack([(blocks == number).sum(axis=-1) for number in range(classes)], axis=-1)
    return (counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)).astype(np.float32)


def check_counted(labels: Sequence[np.ndarray]) -> None:
    """Raises UserError where every pixel is IGNORED."""
    if all((image == IGNORED).all() for image in labels):
        raise UserError(f"every pixel of the masks is {IGNORED}, which is ignored; give masks with classes")


def confusions(predicted: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """The number of pixels of each true class that were given to each class: int [n, true, predicted].

    From n maps [H, W] of each. Raises UserError where every pixel is IGNORED.
    """
    check_counted(labels)
    counts = np.empty((len(labels), classes, classes), np.int64)
    for image, (true, given) in enumerate(zip(labels, predicted)):  # one by one: all pixels as int64 fill the memory
        counted = true != IGNORED
        cells = true[counted].astype(np.int64) * classes + given[counted]
        counts[image] = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return counts


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, [..., classes], from confusions [..., true, predicted]; NaN for one without a true pixel."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    return np.divide(hit, true + predicted - hit, out=np.full_like(hit, np.nan), where=true > 0)


def miou(confusion: np.ndarray) -> np.ndarray:
    """Mean IoU over the classes that occur in the truth, float [...], from confusions [..., true, predicted]."""
    return np.nanmean(class_ious(confusion), axis=-1)


def chance(true: np.ndarray, train_labels: np.ndarray) -> float:
    """The mIoU of giving every pixel the most frequent class of the train masks, uint8 [n, H, W].

    `true` is the number of test pixels of each class.
    """
    # Image by image, because all pixels as int64 fill the memory; IGNORED lies behind the classes.
    frequencies = sum(np.bincount(labels.ravel(), minlength=IGNORED + 1) for labels in train_labels)[: len(true)]
    return float(true[frequencies.argmax()] / true.sum() / np.count_nonzero(true))


def measure(confusion: np.ndarray, counts_NxR: np.ndarray) -> Measured:
    """The mIoU of confusions [test images, true, predicted], and its values on resamples of the images."""
    flat = confusion.reshape(len(confusion), -1).astype(np.float64)
    resampled = (counts_NxR.T @ flat).reshape(-1, *confusion.shape[1:])
    return Measured(float(miou(confusion.sum(axis=0))), miou(resampled))


def _logits(head: PatchClassifier, features_NxD: jax.Array, rows_HxI: jax.Array, columns_WxI: jax.Array) -> jax.Array:
    """Logits of one image, [H, W, classes], at the pixels whose bilinear weights are given."""
    side = round(len(features_NxD) ** 0.5)
    coarse = (features_NxD @ head.weights + head.bias).reshape(side, side, -1)
    return jnp.einsum("hi,ijc,wj->hwc", rows_HxI, coarse, columns_WxI)


@functools.lru_cache
def weights(size: int, side: int) -> np.ndarray:
    """Bilinear weights of the `side` patches in a row at each of `size` pixels: float32 [size, side]."""
    places = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(side)), 0).astype(np.float32)


def loss(params: PatchClassifier, batch: tuple[jax.Array, ...]) -> jax.Array:
    """Of a linear layer on patches, over the pixels of a grid."""
    features_BxNxD, labels_BxHxW, rows, columns = batch
    counted = labels_BxHxW != IGNORED
    logits = jax.vmap(_logits, (None, 0, None, None))(params, features_BxNxD, rows, columns)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels_BxHxW, 0))
    return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def _fit(train: Labelled, classes: int) -> list[PatchClassifier]:
    """The trained head of each of SETTINGS."""
    rng = np.random.default_rng(SEED)
    order = _batches(rng, len(train.features))
    H, W = train.labels.shape[1:]
    rows, columns = (weights(size, round(train.features.shape[1] ** 0.5)) for size in (H, W))
    strides = max(1, H // SIDE), max(1, W // SIDE)

    def examples() -> Iterator[tuple[np.ndarray, ...]]:
        for batch in order:
            # All grids have one size, wherever they start, so that the step is compiled once.
            y, x = (slice(rng.integers(k), k * (size // k), k) for k, size in zip(strides, (H, W)))
            yield train.features[batch], train.labels[batch][:, y, x].astype(int), rows[y], columns[x]

    D = train.features.shape[-1]
    zeros = PatchClassifier(np.zeros((D, classes), np.float32), np.zeros(classes, np.float32))
    fractions = 0.5 * (1 + np.cos(np.pi * np.arange(len(order)) / len(order)))
    (bank,) = heads.train([heads.Bank(heads.Head(loss), zeros, SETTINGS)], examples(), fractions)
    return [PatchClassifier(*(x[i] for x in bank)) for i in range(len(SETTINGS))]


def _batches(rng: np.random.Generator, count: int) -> Sequence[np.ndarray]:
    """STEPS batches of BATCH images, or of all where there are fewer, in shuffled passes over the images."""
    size = min(BATCH, count)
    passes = -(-STEPS // (count // size))
    order = [rng.permutation(count)[: count // size * size].reshape(-1, size) for _ in range(passes)]
    return np.concatenate(order)[:STEPS]


@jax.jit
@full_precision
def _labels(head: PatchClassifier, features_NxD: jax.Array, rows_HxI: jax.Array, columns_WxI: jax.Array) -> jax.Array:
    return _logits(head, features_NxD, rows_HxI, columns_WxI).argmax(axis=-1).astype(jnp.uint8)


def _label(head: PatchClassifier, features_nxNxD: np.ndarray | Rows, shapes: Shapes) -> list[np.ndarray]:
    """The labels of each image, uint8 [H, W] of `shapes`."""
    side, maps = round(features_nxNxD.shape[1] ** 0.5), []
    for features_NxD, (height, width) in zip(features_nxNxD, shapes):
        rows, columns = (np.pad(weights(n, side), ((0, -n % ROUNDED_TO), (0, 0))) for n in (height, width))
        strip = max(1, MOST_LOGITS // (len(columns) * head.bias.shape[-1]))
        strips = [_labels(head, features_NxD, rows[i : i + strip], columns) for i in range(0, len(rows), strip)]
        maps.append(np.concatenate(strips)[:height, :width])
    return maps
