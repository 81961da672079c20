"""The text side of a trained run, frozen: the cosines of patches and words, and the prediction error of each patch.

Only a run has it: an exported encoder has no predictor and no text encoder.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.batch import JepaBatch, uncorrupted
from tc_jepa.masking import MaskSampler
from tc_jepa.masking.masks import pack
from tc_jepa.methods.jepa import Jepa
from tc_jepa.methods.losses import prediction_error
from tc_jepa.models.layers import Params


class FrozenReader:
    """A JEPA with fixed parameters: `params` are those of encoder, predictor and text, `extra` those of the target.

    `grid` is (rows, columns) of patches.
    """

    def __init__(self, method: Jepa, params: Params, extra: Params):
        self.grid = method.predictor.grid
        self._params, self._extra = params, extra
        self._cosines = jax.jit(functools.partial(_cosines, method))
        self._errors = jax.jit(functools.partial(_errors, method))

    def cosines(self, images: np.ndarray, caption_words: np.ndarray, word_valid: np.ndarray) -> np.ndarray:
        """The cosine of each patch's query and each word's key, mean over the predictor's layers: float32 [B, N, C, S].

        Images are uint8 [B, H, W, 3], and the context encoder reads every patch. Captions are as in a Batch; those
        without a valid word are ignored. The cosine of a word that is not valid is 0. Raises ValueError for a predictor
        that does not read words.
        """
        N = self.grid[0] * self.grid[1]
        everything = pack(np.arange(N), [np.zeros(0, np.int32)], N, 1, dropped=0)  # the only target is padding
        batch = _batch(images, caption_words, word_valid, [everything] * len(images))
        return np.asarray(self._cosines(self._params, self._extra, batch))

    def errors(
        self,
        images: np.ndarray,
        caption_words: np.ndarray,
        word_valid: np.ndarray,
        masks: MaskSampler,
        draws: int,
        seed: int = 0,
    ) -> np.ndarray:
        """The prediction loss of each patch, averaged over those of `draws` masks that hide it: float32 [B, N].

        NaN for a patch that no mask hides. The masks do not depend on the captions, so that two calls can be compared.
        """
        B, N = len(images), self.grid[0] * self.grid[1]
        total, count = np.zeros((B, N)), np.zeros((B, N))
        rows = np.arange(B)[:, None, None]
        for draw in range(draws):
            drawn = [masks.draw_at(seed, draw * B + i) for i in range(B)]
            batch = _batch(images, caption_words, word_valid, drawn)
            error_BxMxT = np.asarray(self._errors(self._params, self._extra, batch)).reshape(batch.target_valid.shape)
            np.add.at(total, (rows, batch.target_indices), np.where(batch.target_valid, error_BxMxT, 0.0))
            np.add.at(count, (rows, batch.target_indices), batch.target_valid)
        return np.divide(total, count, out=np.full((B, N), np.nan), where=count > 0).astype(np.float32)


def _batch(images: np.ndarray, caption_words: np.ndarray, word_valid: np.ndarray, masks: Sequence) -> JepaBatch:
    rows = (np.stack(column) for column in zip(*masks, strict=True))
    return JepaBatch(images, caption_words, word_valid, word_valid.any(axis=-1), *rows, **uncorrupted(len(images)))


def _cosines(method: Jepa, params: Params, extra: Params, batch: JepaBatch) -> jax.Array:
    guess = method.predict(params, extra, batch)
    if not guess.readings:
        raise ValueError("this predictor has no attention to words, so that there are no cosines")
    N = batch.context_indices.shape[1]
    cosine_BxNxCxS = jnp.stack([reading.cosine_BxMxLxCxS[:, 0, :N] for reading in guess.readings]).mean(axis=0)
    return jnp.where(guess.words.valid_BxCxS[:, None], cosine_BxNxCxS, 0.0)


def _errors(method: Jepa, params: Params, extra: Params, batch: JepaBatch) -> jax.Array:
    guess = method.predict(params, extra, batch)
    return prediction_error(guess.predicted, guess.targets, method.objective.prediction)
