"""The objective (paper Eq. 1, 3, 4): prediction of hidden features, and sparse, consistent attention to words.

Every term is a mean over an image's valid tokens, then (regularisers) over its valid captions, then over the batch. So
the loss of a batch is the mean of the losses of its equal parts.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Literal

from flax.core import FrozenDict
import jax
import jax.numpy as jnp
import optax

from tc_jepa.models.conditioners.base import Reading, Words
from tc_jepa.models.layers import masked_softmax

PREDICTION_FORMS = ("l2_norm", "smooth_l1", "mse")
REGULARISER_FORMS = ("rectified_cosine", "entropy")


@dataclasses.dataclass(frozen=True)
class Objective:
    """The form of the loss terms and their weights.

    `sparsity` and `consistency` are the paper's lambda and beta; they rise linearly from 0 over `warmup_steps` steps.
    `regulariser` is what they act on, see `regularisers`. `temperature` is used only with regulariser=entropy.
    `anti_collapse` are the weights of terms of anti_collapse.TERMS by name, none of them 0; they have no warm-up.
    """

    prediction: Literal["l2_norm", "smooth_l1", "mse"]
    sparsity: float
    consistency: float
    warmup_steps: int
    regulariser: Literal["rectified_cosine", "entropy"]
    temperature: float
    anti_collapse: Mapping[str, float] = FrozenDict()  # which can be hashed

    def total(self, terms: dict[str, jax.Array], step: jax.Array) -> jax.Array:
        """The loss at `step`, from 0, from the result of `loss_terms`."""
        ramp = jnp.minimum(1.0, step / max(1, self.warmup_steps)) if self.warmup_steps else 1.0
        regularisers = self.sparsity * terms["sparsity"] + self.consistency * terms["consistency"]
        total = terms["prediction"] + ramp * regularisers
        for name, weight in self.anti_collapse.items():
            total += weight * terms[name]
        return total


def loss_terms(
    predicted_BxMxTxD: jax.Array,
    targets_BxMxTxD: jax.Array,
    target_valid_BxMxT: jax.Array,
    token_valid_BxMxL: jax.Array,
    readings: Sequence[Reading],
    words: Words | None,
    objective: Objective,
) -> dict[str, jax.Array]:
    """The unweighted terms, float32 scalars: "prediction", "sparsity", "consistency".

    Without readings the last two are 0 and `words` may be None.
    """
    error_BxMxT = prediction_error(predicted_BxMxTxD, targets_BxMxTxD, objective.prediction)
    terms = {"prediction": masked_mean(error_BxMxT, target_valid_BxMxT, (1, 2)).mean()}
    if not readings:
        return terms | {"sparsity": jnp.zeros(()), "consistency": jnp.zeros(())}
    cosines = jnp.stack([reading.cosine_BxMxLxCxS for reading in readings])
    sparsity_BxC, consistency_BxC = regularisers(cosines, words.valid_BxCxS, token_valid_BxMxL, objective)
    return terms | {
        "sparsity": masked_mean(sparsity_BxC, words.caption_valid_BxC, (1,)).mean(),
        "consistency": masked_mean(consistency_BxC, words.caption_valid_BxC, (1,)).mean(),
    }


def prediction_error(predicted: jax.Array, targets: jax.Array, form: str) -> jax.Array:
    """Error of each target patch, [..., D] -> [...].

    l2_norm is Eq. 1, the norm itself: neither squared nor averaged over channels. smooth_l1 is that of I-JEPA's code, a
    mean over channels. It is about 60 times smaller at the start, so the regularisers' weights are not comparable.
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
    cosine_YxBxMxLxCxS: jax.Array, word_valid_BxCxS: jax.Array, token_valid_BxMxL: jax.Array, objective: Objective
) -> tuple[jax.Array, jax.Array]:
    """Eq. 3 and 4 for each image and caption, over Y layers: sparsity [B, C] and consistency [B, C].

    Let O be a score of each token and word. Consistency is the mean over tokens and layers of ||O - mean over layers of
    O||_1, and sparsity the mean of the spread of O. In the paper O is the rectified cosine, max(cos, 0), and its spread
    is ||O||_1: both terms and their gradients vanish if no cosine is positive. "entropy" is our form, which cannot
    vanish: O = softmax(cos / temperature) over valid words, and its spread is its entropy divided by the entropy of
    equal scores (0 if a caption has one word).
    """
    valid = word_valid_BxCxS[:, None, None]
    if objective.regulariser == "rectified_cosine":
        O = jnp.maximum(cosine_YxBxMxLxCxS, 0.0) * valid
        spread_YxBxMxLxC = O.sum(axis=-1)
    elif objective.regulariser == "entropy":
        O = masked_softmax(cosine_YxBxMxLxCxS / objective.temperature, valid)
        spread_YxBxMxLxC = normalised_entropy(O, valid)
    else:
        raise ValueError(f"unknown regulariser {objective.regulariser!r}; one of {', '.join(REGULARISER_FORMS)}")
    consistency_BxMxLxC = jnp.abs(O - O.mean(axis=0)).sum(axis=-1).mean(axis=0)
    token_valid = token_valid_BxMxL[..., None]
    return (
        masked_mean(spread_YxBxMxLxC.mean(axis=0), token_valid, (1, 2)),
        masked_mean(consistency_BxMxLxC, token_valid, (1, 2)),
    )


def normalised_entropy(p: jax.Array, valid: jax.Array) -> jax.Array:
    """Entropy over the last axis, divided by the log of the number of valid entries; 0 if there are fewer than two."""
    entropy = -jax.scipy.special.xlogy(p, p).sum(axis=-1)
    return entropy / jnp.log(jnp.maximum(valid.sum(axis=-1), 2))


def masked_mean(x: jax.Array, valid: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Mean over the valid entries of some axes; 0 if none is valid. `valid` broadcasts to `x`."""
    valid = jnp.broadcast_to(valid, x.shape)
    total = jnp.where(valid, x, 0.0).sum(axis=axes)
    return total / jnp.maximum(valid.sum(axis=axes), 1)
