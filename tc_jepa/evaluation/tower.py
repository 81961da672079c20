"""The text tower of a contrastive run, frozen: images and captions in the space where they are compared.

Only a run has it: an exported encoder has no text tower.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.evaluation.encoder import full_precision
from tc_jepa.methods.contrastive import Contrastive
from tc_jepa.methods.contrastive_losses import unit
from tc_jepa.models.layers import Params

BATCH = 256  # captions, or images, that are computed at once


class FrozenTower:
    """A contrastive method with fixed parameters. Embeddings are of length 1; their products are cosines."""

    def __init__(self, method: Contrastive, params: Params, tokenizer: CaptionTokenizer):
        self._params, self._tokenizer = params, tokenizer
        self._texts = jax.jit(full_precision(functools.partial(_texts, method)))
        self._images = jax.jit(full_precision(functools.partial(_images, method)))

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Embeddings of captions, float32 [n, P]."""
        return _in_batches(functools.partial(self._texts, self._params), *self._tokenizer.encode(captions))

    def images(self, pooled: np.ndarray) -> np.ndarray:
        """Embeddings of images, from their pooled features [n, D]: float32 [n, P]."""
        return _in_batches(functools.partial(self._images, self._params), pooled)


def _texts(method: Contrastive, params: Params, words_BxS: jax.Array, valid_BxS: jax.Array) -> jax.Array:
    pooled_BxE = method.pooled(method.words(params, words_BxS, valid_BxS), valid_BxS)
    return unit(method.shared(params, jnp.zeros((1, method.encoder.size.width)), pooled_BxE).texts)


def _images(method: Contrastive, params: Params, pooled_BxD: jax.Array) -> jax.Array:
    return unit(method.shared(params, pooled_BxD, jnp.zeros((1, method.text.width))).images)


def _in_batches(function, *arrays: np.ndarray) -> np.ndarray:
    """function of the arrays, which are as long as each other, BATCH rows at a time; the last batch is padded."""
    rows, parts = len(arrays[0]), []
    for start in range(0, rows, BATCH):
        chunk = [x[start : start + BATCH] for x in arrays]
        padded = [np.pad(x, [(0, BATCH - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in chunk]
        parts.append(np.asarray(function(*padded))[: len(chunk[0])])
    return np.concatenate(parts)
