"""One training step, as a pure function. It runs un-jitted, without a mesh, on any batch: that is how it is tested."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tc_jepa.batch import Batch
from tc_jepa.methods.losses import loss_terms, Objective
from tc_jepa.models import layers
from tc_jepa.models.conditioners.base import Reading, Words
from tc_jepa.models.layers import Params
from tc_jepa.optimizer import Schedules
from tc_jepa.state import Networks, TrainState

Metrics = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: Batch,
    frozen: Params,
    *,
    networks: Networks,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedules: Schedules,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """One update of the trained parameters, then of the target's. Metrics are float32 scalars.

    `frozen` holds the parameters of networks that are never trained, by name (a T5's under "text"). `seed` is for what
    the step itself draws, a function of (seed, step): StoP's noise.
    """
    noise_key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of(params):
        terms, _ = forward({**frozen, **params}, state.target_params, batch, networks, objective, noise_key)
        return objective.total(terms, state.step), terms

    (loss, terms), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    momentum = schedules.momentum(state.step)
    target_params = networks.target.follow(state.target_params, params["encoder"], momentum)

    metrics = {"loss": loss} | {f"loss/{name}": value for name, value in terms.items()}
    metrics |= {
        "learning_rate": schedules.learning_rate(state.step + 1),
        "weight_decay": schedules.weight_decay(state.step + 1),
        "momentum": momentum,
        "gradient_norm": optax.tree.norm(gradients),
        "context_tokens": batch.context_valid.sum(axis=-1).mean(dtype=jnp.float32),
        "context_dropped": batch.context_dropped.mean(dtype=jnp.float32),
        "target_tokens": batch.target_valid.sum(axis=-1).mean(dtype=jnp.float32),
        "captions": batch.caption_valid.sum(axis=-1).mean(dtype=jnp.float32),
    }
    return TrainState(state.step + 1, params, target_params, opt_state), metrics


def forward(
    params: Params,
    target_params: Params,
    batch: Batch,
    networks: Networks,
    objective: Objective,
    noise_key: jax.Array | None = None,
) -> tuple[dict[str, jax.Array], list[Reading]]:
    """The loss terms of a batch, and what each predictor layer read. Without a key, places are certain (StoP)."""
    guess = predict(params, target_params, batch, networks, noise_key)
    tokens = token_validity(guess.batch)
    terms = loss_terms(
        guess.predicted, guess.targets, guess.batch.target_valid, tokens, guess.readings, guess.words, objective
    )
    return terms, guess.readings


class Prediction(NamedTuple):
    """What a batch's hidden patches are predicted to be, what they are, and what was read on the way."""

    batch: Batch  # with its targets as they were predicted: joined where the networks say so
    predicted: jax.Array  # float32 [B, M, T, D]
    targets: jax.Array  # float32 [B, M, T, D]
    words: Words | None  # None: networks.text is None
    readings: list[Reading]


def predict(
    params: Params, target_params: Params, batch: Batch, networks: Networks, noise_key: jax.Array | None = None
) -> Prediction:
    """Context encoder, predictor and target on a batch."""
    if networks.joint_targets:
        batch = join_targets(batch)
    images = layers.normalise_images(batch.images)
    targets_BxMxTxD = target_features(target_params, images, batch.target_indices, networks)
    context_BxKxD = networks.encoder.apply(
        {"params": params["encoder"]}, images, batch.context_indices, batch.context_valid
    )
    words = None
    if networks.text is not None:
        vectors = networks.text.apply({"params": params["text"]}, batch.caption_words, batch.word_valid)
        words = Words(vectors, batch.word_valid, batch.caption_valid)
    predicted_BxMxTxD, readings = networks.predictor.apply(
        {"params": params["predictor"]},
        context_BxKxD,
        batch.context_indices,
        batch.context_valid,
        batch.target_indices,
        batch.target_valid,
        words,
        rngs=None if noise_key is None else {"positions": noise_key},
    )
    return Prediction(batch, predicted_BxMxTxD, targets_BxMxTxD, words, readings)


def join_targets(batch: Batch) -> Batch:
    """All target blocks as one, [B, 1, M * T], so that they are predicted in one sequence and see each other.

    A patch of several blocks is predicted, and counts, once for each.
    """
    one = (len(batch.target_valid), 1, -1)
    return batch._replace(
        target_indices=batch.target_indices.reshape(one), target_valid=batch.target_valid.reshape(one)
    )


def token_validity(batch: Batch) -> jax.Array:
    """Which tokens of the predictor's sequences are real: bool [B, M, K + T]."""
    B, M, _ = batch.target_valid.shape
    context_valid = jnp.broadcast_to(batch.context_valid[:, None], (B, M, batch.context_valid.shape[-1]))
    return jnp.concatenate([context_valid, batch.target_valid], axis=2)


def target_features(
    target_params: Params, images: jax.Array, target_indices_BxMxT: jax.Array, networks: Networks
) -> jax.Array:
    """What is to be predicted, [B, M, T, D]: the target sees the whole image; no gradient flows back."""
    B, M, T = target_indices_BxMxT.shape
    features_BxNxD = networks.target.features(target_params, images)
    chosen = layers.gather_tokens(features_BxNxD, target_indices_BxMxT.reshape(B, M * T))
    return jax.lax.stop_gradient(chosen.reshape(B, M, T, -1))
