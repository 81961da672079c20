"""Linear segmentation: a linear layer on frozen patch features, its logits enlarged bilinearly to the labels' size.

A small bank of heads, one for each learning rate, is trained at once; which of them is tested is chosen on a fifth of
the train images. Pixels of class IGNORED count nowhere. A step of training looks at a coarse grid of pixels, shifted at
random, because neighbours say nearly the same; testing looks at all.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.errors import UserError
from tc_jepa.evaluation.scores import Measured

IGNORED = 255
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of AdamW, each falling to 0 on a cosine
WEIGHT_DECAY = 1e-4
STEPS, BATCH = 400, 32  # images
SIDE = 30  # pixels a side of the grid, about
VALIDATION_STRIDE = 5  # every fifth train image chooses the head
SEED = 0
TEST_CHUNK = 64  # images


class Labelled(NamedTuple):
    """Images as patch features and label maps."""

    features: np.ndarray  # float32 [n, N, D], N = side * side
    labels: np.ndarray  # uint8 [n, H, W]


class Head(NamedTuple):
    """logits = (features - mean) / scale @ weights + bias. A bank of them has a leading axis in weights and bias."""

    weights: jax.Array  # float32 [D, classes]
    bias: jax.Array  # float32 [classes]


def confusions(train: Labelled, test: Labelled, classes: int) -> np.ndarray:
    """How many pixels of each true class a probe gives to each class: int [test images, true, predicted].

    UserError where there are too few train images, or none of their pixels has a class.
    """
    if len(train.features) <= VALIDATION_STRIDE:
        count = len(train.features)
        raise UserError(f"segmentation has only {count} train images; give it more than {VALIDATION_STRIDE}")
    if (train.labels == IGNORED).all() or (test.labels == IGNORED).all():
        raise UserError(f"every pixel of the masks is {IGNORED}, which is ignored; give masks with classes")
    mean, scale = train.features.mean(axis=(0, 1)), train.features.std(axis=(0, 1)) + 1e-6
    held_out = np.arange(len(train.features)) % VALIDATION_STRIDE == 0
    train, test = (data._replace(features=(data.features - mean) / scale) for data in (train, test))
    bank = _fit(Labelled(*(x[~held_out] for x in train)), classes)
    chosen = Labelled(*(x[held_out] for x in train))
    values = [miou(_confusions(Head(*(x[i] for x in bank)), chosen, classes)) for i in range(len(LEARNING_RATES))]
    best = int(np.argmax(values))
    return _confusions(Head(*(x[best] for x in bank)), test, classes)


def miou(confusion: np.ndarray) -> float:
    """Mean over the classes that occur in the truth, from confusions [..., true, predicted] summed over images."""
    return float(_mious(confusion.reshape(-1, *confusion.shape[-2:]).sum(axis=0)[None])[0])


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, float [classes], NaN for a class without a true pixel."""
    return _ious(confusion.reshape(-1, *confusion.shape[-2:]).sum(axis=0)[None])[0]


def commonest(confusion: np.ndarray) -> np.ndarray:
    """The confusion [true, predicted] of giving every pixel the commonest true class: what knowing nothing scores."""
    true = confusion.sum(axis=(0, 2))
    guess = np.zeros((len(true), len(true)), np.int64)
    guess[:, true.argmax()] = true
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


def _logits(head: Head, features_BxNxD: jax.Array, rows_HxI: jax.Array, columns_WxI: jax.Array) -> jax.Array:
    """[B, H, W, classes] at the pixels whose bilinear weights are given."""
    B, N, _ = features_BxNxD.shape
    side = round(N**0.5)
    coarse = (features_BxNxD @ head.weights + head.bias).reshape(B, side, side, -1)
    return jnp.einsum("hi,bijc,wj->bhwc", rows_HxI, coarse, columns_WxI)


def _weights(size: int, side: int) -> jax.Array:
    """Of each of `side` patches in a row at each of `size` pixels, bilinear: [size, side]."""
    return jax.image.resize(jnp.eye(side), (size, side), "bilinear")


def _loss(head: Head, features_BxNxD: jax.Array, labels_BxHxW: jax.Array, weights: tuple) -> jax.Array:
    counted = labels_BxHxW != IGNORED
    logits = _logits(head, features_BxNxD, *weights)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels_BxHxW, 0))
    return jnp.where(counted, losses, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def _fit(train: Labelled, classes: int) -> Head:
    """The bank, with a leading axis for LEARNING_RATES; all heads see the same batches."""
    D = train.features.shape[-1]
    rng = np.random.default_rng(SEED)
    order = _batches(rng, len(train.features))
    rates = jnp.array(LEARNING_RATES)
    bank = Head(jnp.zeros((len(rates), D, classes)), jnp.zeros((len(rates), classes)))
    adam = optax.scale_by_adam()
    moments = jax.vmap(adam.init)(bank)
    H, W = train.labels.shape[1:]
    rows, columns = (np.asarray(_weights(size, round(train.features.shape[1] ** 0.5))) for size in (H, W))
    strides = max(1, H // SIDE), max(1, W // SIDE)
    for step, batch in enumerate(order):
        fraction = 0.5 * (1 + np.cos(np.pi * step / len(order)))
        # Grids of one size wherever they begin, so that the step is compiled once.
        y, x = (slice(rng.integers(k), k * (size // k), k) for k, size in zip(strides, (H, W)))
        labels = train.labels[batch][:, y, x].astype(int)
        bank, moments = _update(bank, moments, rates * fraction, train.features[batch], labels, (rows[y], columns[x]))
    return bank


def _batches(rng: np.random.Generator, count: int) -> Sequence[np.ndarray]:
    """STEPS batches of BATCH images, or of all where there are fewer; every image once before any comes again."""
    size = min(BATCH, count)
    passes = -(-STEPS // (count // size))
    order = [rng.permutation(count)[: count // size * size].reshape(-1, size) for _ in range(passes)]
    return np.concatenate(order)[:STEPS]


@jax.jit
def _update(bank: Head, moments, rates: jax.Array, features: jax.Array, labels: jax.Array, weights: tuple):
    gradients = jax.vmap(jax.grad(_loss), in_axes=(0, None, None, None))(bank, features, labels, weights)
    steps, moments = jax.vmap(optax.scale_by_adam().update)(gradients, moments)

    def stepped(parameter, step):
        rate = rates.reshape(-1, *[1] * (parameter.ndim - 1))
        decay = WEIGHT_DECAY if parameter.ndim == 3 else 0.0  # not of the bias
        return parameter - rate * (step + decay * parameter)

    return jax.tree.map(stepped, bank, steps), moments


@functools.partial(jax.jit, static_argnames="shape")
def _predicted(head: Head, features_BxNxD: jax.Array, shape: tuple[int, int]) -> jax.Array:
    weights = (_weights(size, round(features_BxNxD.shape[1] ** 0.5)) for size in shape)
    return _logits(head, features_BxNxD, *weights).argmax(axis=-1)


def _confusions(head: Head, data: Labelled, classes: int) -> np.ndarray:
    parts = []
    for start in range(0, len(data.features), TEST_CHUNK):
        features, labels = (x[start : start + TEST_CHUNK] for x in data)
        predicted = np.asarray(_predicted(head, features, labels.shape[1:]))
        image = np.arange(len(labels))[:, None, None]
        cell = (image * classes + np.minimum(labels, classes - 1)) * classes + predicted
        cells = np.bincount(cell[labels != IGNORED], minlength=len(labels) * classes * classes)
        parts.append(cells.reshape(len(labels), classes, classes))
    return np.concatenate(parts)
