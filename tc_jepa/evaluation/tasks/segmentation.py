"""Segmentation from frozen patch features: a linear layer, or the nearest patches of the train images.

The logits of the patches are enlarged bilinearly to the size of the labels (TC-JEPA App. C.3). Images are seen whole,
stretched to squares, as CAPI sees them (facebookresearch/capi, eval_segmentation.py: eval_model); unlike there, test
labels keep their own size. A small bank of heads, one for each learning rate and weight decay of AdamW, is trained at
once; which of them is tested is chosen on a fifth of the train images. Pixels of class IGNORED count nowhere. A step of
training looks at a coarse grid of pixels, shifted at random, because neighbours say nearly the same; testing looks at
all.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.data.images import IGNORED
from tc_jepa.errors import UserError
from tc_jepa.evaluation.scores import Measured, Sweep
from tc_jepa.evaluation.tasks import knn
from tc_jepa.evaluation.tasks.linear import validation_examples

# Of AdamW: (learning rate, which falls to 0 on a cosine; weight decay, not of the bias).
SETTINGS = tuple((rate, decay) for rate in (1e-3, 3e-3, 1e-2, 3e-2) for decay in (1e-4, 1e-1))
STEPS, BATCH = 400, 32  # images
SIDE = 30  # pixels a side of the grid, about
SEED = 0
TEST_CHUNK, MOST_LOGITS = 64, 2**26  # images at once, and logits of them
ROUNDED_TO = 64  # pixels, to which sides of label maps are padded, so that not every size is compiled for
NEAREST_OF = 10_000  # train patches that the nearest are searched among, at most


class Labelled(NamedTuple):
    """Square images as patch features and label maps."""

    features: np.ndarray  # float32 [n, N, D], N = side * side
    labels: np.ndarray  # uint8 [n, H, H]


class Head(NamedTuple):
    """logits = (features - mean) / scale @ weights + bias. A bank of them has a leading axis in weights and bias."""

    weights: jax.Array  # float32 [D, classes]
    bias: jax.Array  # float32 [classes]


class Segmented(NamedTuple):
    """What was made of the test images."""

    predicted: list[np.ndarray]  # uint8 [H, W] each
    sweep: Sweep
    chosen: str


Shapes = Sequence[tuple[int, int]]  # of label maps, (height, width) each


def segment(train: Labelled, test_features: np.ndarray, classes: int, shapes: Shapes) -> Segmented:
    """Fits the bank on train images and lets its best head label the test images, whose features are [n, N, D], in maps
    of `shapes`, onto which the squares that the encoder saw are stretched.

    UserError where there are too few train images, or no pixel of those that fit or choose has a class.
    """
    held_out = validation_examples("segmentation", len(train.features))
    check_counted(train.labels[~held_out])
    mean, scale = train.features.mean(axis=(0, 1)), train.features.std(axis=(0, 1)) + 1e-6
    train = train._replace(features=(train.features - mean) / scale)
    bank = _fit(Labelled(*(x[~held_out] for x in train)), classes)
    chosen = Labelled(*(x[held_out] for x in train))
    heads = [Head(*(x[i] for x in bank)) for i in range(len(SETTINGS))]
    own = [labels.shape for labels in chosen.labels]
    values = [miou(confusions(_label(head, chosen.features, own), chosen.labels, classes)) for head in heads]
    best = int(np.argmax(values))
    predicted = _label(heads[best], (test_features - mean) / scale, shapes)
    sweep = {(f"decay {decay:g}", rate): value for (rate, decay), value in zip(SETTINGS, values)}
    return Segmented(predicted, sweep, f"rate {SETTINGS[best][0]:g}, decay {SETTINGS[best][1]:g}")


def nearest(train: Labelled, test_features: np.ndarray, classes: int, shapes: Shapes) -> list[np.ndarray]:
    """Labels of the test images, uint8 [H, W] of `shapes`, without any training: a patch has the classes of the train
    patches nearest to it, by the shares of their pixels. The grid of patches divides the sides of the train labels."""
    P, D = train.features.shape[1:]
    shares = patch_shares(train.labels, classes, round(P**0.5)).reshape(-1, classes)
    rows = np.flatnonzero(shares.sum(axis=1))  # a patch that is ignored whole says nothing
    if len(rows) > NEAREST_OF:
        rows = np.sort(np.random.default_rng(SEED).choice(rows, NEAREST_OF, replace=False))
    features, shares = train.features.reshape(-1, D)[rows], shares[rows]
    most_votes = Head(jnp.eye(classes), jnp.zeros(classes))
    maps = []
    for start in range(0, len(test_features), TEST_CHUNK):
        part = test_features[start : start + TEST_CHUNK]
        votes = knn.vote(knn.neighbours(features, part.reshape(-1, D)), shares)
        maps += _label(most_votes, votes.reshape(len(part), P, classes), shapes[start : start + TEST_CHUNK])
    return maps


def patch_shares(labels: np.ndarray, classes: int, side: int) -> np.ndarray:
    """Of labels [n, H, W], the share of each class among the pixels of each patch that count: float32 [n, N, classes].

    Zero for a patch without any such pixel.
    """
    n, H, W = labels.shape
    blocks = labels.reshape(n, side, H // side, side, W // side).transpose(0, 1, 3, 2, 4).reshape(n, side * side, -1)
    counts = np.stack([(blocks == number).sum(axis=-1) for number in range(classes)], axis=-1)
    return (counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)).astype(np.float32)


def check_counted(labels: Sequence[np.ndarray]) -> None:
    """UserError where no pixel counts."""
    if all((image == IGNORED).all() for image in labels):
        raise UserError(f"every pixel of the masks is {IGNORED}, which is ignored; give masks with classes")


def confusions(predicted: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """How many pixels of each true class were given to each class: int [n, true, predicted], from n [H, W] of both.

    UserError where no pixel counts.
    """
    check_counted(labels)
    counts = np.empty((len(labels), classes, classes), np.int64)
    for image, (true, given) in enumerate(zip(labels, predicted)):  # one by one: all pixels as int64 fill the memory
        counted = true != IGNORED
        cells = true[counted].astype(np.int64) * classes + given[counted]
        counts[image] = np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return counts


def miou(confusion: np.ndarray) -> float:
    """Mean over the classes that occur in the truth, from confusions [..., true, predicted] summed over images."""
    return float(_mious(confusion.reshape(-1, *confusion.shape[-2:]).sum(axis=0)[None])[0])


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, float [classes], NaN for a class without a true pixel."""
    return _ious(confusion.reshape(-1, *confusion.shape[-2:]).sum(axis=0)[None])[0]


def commonest(confusion: np.ndarray, train_labels: np.ndarray) -> np.ndarray:
    """What the train masks' frequencies alone give: the confusion [true, predicted] of calling every pixel what most
    pixels of `train_labels` [n, H, W] are, whose classes are those of `confusion` [test images, true, predicted]."""
    true = confusion.sum(axis=(0, 2))
    # Image by image, because all pixels as int64 fill the memory; IGNORED lies behind the classes.
    frequencies = sum(np.bincount(labels.ravel(), minlength=IGNORED + 1) for labels in train_labels)[: len(true)]
    guess = np.zeros((len(true), len(true)), np.int64)
    guess[:, frequencies.argmax()] = true
    return guess


def measure(confusion: np.ndarray, counts_NxR: np.ndarray) -> Measured:
    """The mIoU of [test images, true, predicted], and what it is on resamples of the images."""
    flat = confusion.reshape(len(confusion), -1).astype(np.float64)
    resampled = (counts_NxR.T @ flat).reshape(-1, *confusion.shape[1:])
    return Measured(miou(confusion), _mious(resampled))


def _ious(confusion_RxCxC: np.ndarray) -> np.ndarray:
    hit = np.diagonal(confusion_RxCxC, axis1=1, axis2=2).astype(np.float64)
    true, predicted = confusion_RxCxC.sum(axis=2), confusion_RxCxC.sum(axis=1)
    return np.divide(hit, true + predicted - hit, out=np.full_like(hit, np.nan), where=true > 0)


def _mious(confusion_RxCxC: np.ndarray) -> np.ndarray:
    return np.nanmean(_ious(confusion_RxCxC), axis=1)


def _logits(head: Head, features_NxD: jax.Array, rows_HxI: jax.Array, columns_WxI: jax.Array) -> jax.Array:
    """Of one image, [H, W, classes] at the pixels whose bilinear weights are given."""
    side = round(len(features_NxD) ** 0.5)
    coarse = (features_NxD @ head.weights + head.bias).reshape(side, side, -1)
    return jnp.einsum("hi,ijc,wj->hwc", rows_HxI, coarse, columns_WxI)


@functools.lru_cache
def weights(size: int, side: int) -> np.ndarray:
    """Of each of `side` patches in a row at each of `size` pixels, bilinear: float32 [size, side]."""
    places = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(side)), 0).astype(np.float32)


def _loss(head: Head, features_BxNxD: jax.Array, labels_BxHxW: jax.Array, rows: jax.Array, columns: jax.Array):
    counted = labels_BxHxW != IGNORED
    logits = jax.vmap(_logits, (None, 0, None, None))(head, features_BxNxD, rows, columns)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels_BxHxW, 0))
    return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def _fit(train: Labelled, classes: int) -> Head:
    """The bank, with a leading axis for SETTINGS; all heads see the same batches."""
    D = train.features.shape[-1]
    rng = np.random.default_rng(SEED)
    order = _batches(rng, len(train.features))
    rates, decays = jnp.array(SETTINGS).T
    bank = Head(jnp.zeros((len(rates), D, classes)), jnp.zeros((len(rates), classes)))
    adam = optax.scale_by_adam()
    moments = jax.vmap(adam.init)(bank)
    H, W = train.labels.shape[1:]
    rows, columns = (weights(size, round(train.features.shape[1] ** 0.5)) for size in (H, W))
    strides = max(1, H // SIDE), max(1, W // SIDE)
    for step, batch in enumerate(order):
        fraction = 0.5 * (1 + np.cos(np.pi * step / len(order)))
        # Grids of one size wherever they begin, so that the step is compiled once.
        y, x = (slice(rng.integers(k), k * (size // k), k) for k, size in zip(strides, (H, W)))
        labels = train.labels[batch][:, y, x].astype(int)
        seen = train.features[batch], labels, rows[y], columns[x]
        bank, moments = _update(bank, moments, rates * fraction, decays, seen)
    return bank


def _batches(rng: np.random.Generator, count: int) -> Sequence[np.ndarray]:
    """STEPS batches of BATCH images, or of all where there are fewer; every image once before any comes again."""
    size = min(BATCH, count)
    passes = -(-STEPS // (count // size))
    order = [rng.permutation(count)[: count // size * size].reshape(-1, size) for _ in range(passes)]
    return np.concatenate(order)[:STEPS]


@jax.jit
def _update(bank: Head, moments, rates: jax.Array, decays: jax.Array, seen: tuple):
    gradients = jax.vmap(lambda head: jax.grad(_loss)(head, *seen))(bank)
    steps, moments = jax.vmap(optax.scale_by_adam().update)(gradients, moments)

    def stepped(parameter, step):
        rate, decay = (x.reshape(-1, *[1] * (parameter.ndim - 1)) for x in (rates, decays))
        if parameter.ndim < 3:  # the bias
            decay = 0.0
        return parameter - rate * (step + decay * parameter)

    return jax.tree.map(stepped, bank, steps), moments


@jax.jit
def _labels(head: Head, features_BxNxD: jax.Array, rows_BxHxI: jax.Array, columns_BxWxI: jax.Array) -> jax.Array:
    logits = jax.vmap(_logits, (None, 0, 0, 0))(head, features_BxNxD, rows_BxHxI, columns_BxWxI)
    return logits.argmax(axis=-1).astype(jnp.uint8)


def _label(head: Head, features_nxNxD: np.ndarray, shapes: Shapes) -> list[np.ndarray]:
    """uint8 [H, W] of each image."""
    images_of: dict[tuple[int, int], list[int]] = {}
    for image, shape in enumerate(shapes):
        padded = tuple(-(-size // ROUNDED_TO) * ROUNDED_TO for size in shape)
        images_of.setdefault(padded, []).append(image)
    maps: dict[int, np.ndarray] = {}
    for (H, W), images in images_of.items():
        at_once = max(1, min(TEST_CHUNK, MOST_LOGITS // (H * W * head.bias.shape[-1])))
        for start in range(0, len(images), at_once):
            part = images[start : start + at_once]
            for image, labels in zip(part, _padded(head, features_nxNxD[part], [shapes[i] for i in part], H, W)):
                height, width = shapes[image]
                maps[image] = labels[:height, :width].copy()  # not what it is padded to
    return [maps[image] for image in range(len(shapes))]


def _padded(head: Head, features_BxNxD: np.ndarray, shapes: Shapes, H: int, W: int) -> np.ndarray:
    """uint8 [B, H, W], each map in the upper left corner; in strips, where one image has too many logits."""
    side = round(features_BxNxD.shape[1] ** 0.5)
    rows, columns = (np.zeros((len(shapes), size, side), np.float32) for size in (H, W))
    for image, (height, width) in enumerate(shapes):
        rows[image, :height], columns[image, :width] = weights(height, side), weights(width, side)
    strip = min(H, max(1, MOST_LOGITS // (W * head.bias.shape[-1])))
    strips = [_labels(head, features_BxNxD, rows[:, top : top + strip], columns) for top in range(0, H, strip)]
    return np.concatenate(strips, axis=1)
