"""The objective (paper Eq. 1, 3, 4): predict hidden features, and let few words speak, the same at every layer.

Every term is a mean over an image's valid tokens, then (regularisers) over its valid captions, then over the batch,
so that splitting a batch into equal parts and averaging their losses changes nothing.
"""

from collections.abc import Sequence
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from tc_jepa.models.conditioner import Reading, Words

PREDICTION_FORMS = ("l2_norm", "smooth_l1", "mse")
TARGET_NORM_EPSILON = 1e-5  # torch's default, which the official code uses here (ijepa src/train.py:301)


@dataclasses.dataclass(frozen=True)
class Objective:
    """`sparsity` and `consistency` are the paper's lambda and beta, reached linearly over `warmup_steps` steps."""

    prediction: Literal["l2_norm", "smooth_l1", "mse"]
    sparsity: float
    consistency: float
    warmup_steps: int

    def total(self, terms: dict[str, jax.Array], step: jax.Array) -> jax.Array:
        """The loss at 0-based `step` from the terms of `loss_terms`."""
        ramp = jnp.minimum(1.0, step / max(1, self.warmup_steps)) if self.warmup_steps else 1.0
        regularisers = self.sparsity * terms["sparsity"] + self.consistency * terms["consistency"]
        return terms["prediction"] + ramp * regularisers


def loss_terms(
    predicted_BxMxTxD: jax.Array,
    targets_BxMxTxD: jax.Array,
    target_valid_BxMxT: jax.Array,
    token_valid_BxMxL: jax.Array,
    readings: Sequence[Reading],
    words: Words,
    form: str,
) -> dict[str, jax.Array]:
    """The unweighted terms, float32 scalars: "prediction", "sparsity", "consistency" (0 without readings)."""
    error_BxMxT = prediction_error(predicted_BxMxTxD, targets_BxMxTxD, form)
    terms = {"prediction": masked_mean(error_BxMxT, target_valid_BxMxT, (1, 2)).mean()}
    if not readings:
        return terms | {"sparsity": jnp.zeros(()), "consistency": jnp.zeros(())}
    cosines = jnp.stack([reading.cosine_BxMxLxCxS for reading in readings])
    sparsity_BxC, consistency_BxC = regularisers(cosines, words.valid_BxCxS, token_valid_BxMxL)
    return terms | {
        "sparsity": masked_mean(sparsity_BxC, words.caption_valid_BxC, (1,)).mean(),
        "consistency": masked_mean(consistency_BxC, words.caption_valid_BxC, (1,)).mean(),
    }


def normalise_targets(features_BxNxD: jax.Array) -> jax.Array:
    """LayerNorm without parameters."""
    return jax.nn.standardize(features_BxNxD, axis=-1, epsilon=TARGET_NORM_EPSILON)


def prediction_error(predicted: jax.Array, targets: jax.Array, form: str) -> jax.Array:
    """Error of each target patch, [..., D] -> [...].

    l2_norm is Eq. 1, the norm itself: neither squared nor averaged over channels. smooth_l1 is I-JEPA's code, a mean
    over channels and some 60 times smaller at the start, so that the regularisers' weights mean something else there.
    """
    difference = predicted - targets
    if form == "l2_norm":
        return optax.safe_norm(difference, 1e-6, axis=-1)
    if form == "smooth_l1":
        return optax.losses.huber_loss(predicted, targets, delta=1.0).mean(axis=-1)
    if form == "mse":
        return jnp.square(difference).mean(axis=-1)
    raise ValueError(f"unknown prediction loss {form!r}; one of {', '.join(PREDICTION_FORMS)}")


def regularisers(
    cosine_YxBxMxLxCxS: jax.Array, word_valid_BxCxS: jax.Array, token_valid_BxMxL: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Eq. 3 and 4 for each image and caption, over Y layers: sparsity [B, C] and consistency [B, C].

    O = max(cosine, 0) over valid words. Sparsity is the mean of ||O||_1 over tokens and layers; consistency the mean
    of ||O - mean over layers of O||_1.
    """
    O = jnp.maximum(cosine_YxBxMxLxCxS, 0.0) * word_valid_BxCxS[:, None, None]
    sparsity_BxMxLxC = O.sum(axis=-1).mean(axis=0)
    consistency_BxMxLxC = jnp.abs(O - O.mean(axis=0)).sum(axis=-1).mean(axis=0)
    token_valid = token_valid_BxMxL[..., None]
    return (
        masked_mean(sparsity_BxMxLxC, token_valid, (1, 2)),
        masked_mean(consistency_BxMxLxC, token_valid, (1, 2)),
    )


def masked_mean(x: jax.Array, valid: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Mean over the valid entries of some axes; 0 where there is none. `valid` broadcasts to `x`."""
    valid = jnp.broadcast_to(valid, x.shape)
    total = jnp.where(valid, x, 0.0).sum(axis=axes)
    return total / jnp.maximum(valid.sum(axis=axes), 1)
