"""One training step, as a pure function. It runs un-jitted, without a mesh, on any batch: that is how it is tested."""

import jax
import jax.numpy as jnp
import optax

from tc_jepa.batch import Batch
from tc_jepa.models import layers
from tc_jepa.models.conditioner import Reading, Words
from tc_jepa.objective import loss_terms, normalise_targets, Objective
from tc_jepa.optimizer import Schedules
from tc_jepa.state import Networks, Params, TrainState

Metrics = dict[str, jax.Array]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    networks: Networks,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedules: Schedules,
) -> tuple[TrainState, Metrics]:
    """One update of the trained parameters, then of the target encoder. Metrics are float32 scalars."""

    def loss_of(params):
        terms, _ = forward(params, state.target_params, batch, networks, objective)
        return objective.total(terms, state.step), terms

    (loss, terms), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    momentum = schedules.momentum(state.step)
    target_params = update_target(state.target_params, params["encoder"], momentum)

    metrics = {"loss": loss} | {f"loss/{name}": value for name, value in terms.items()}
    metrics |= {
        "learning_rate": schedules.learning_rate(state.step + 1),
        "weight_decay": schedules.weight_decay(state.step + 1),
        "momentum": momentum,
        "gradient_norm": optax.tree.norm(gradients),
        "context_tokens": batch.context_valid.sum(axis=-1).mean(dtype=jnp.float32),
        "context_dropped": batch.context_dropped.mean(dtype=jnp.float32),
        "target_tokens": batch.target_valid.sum(axis=-1).mean(dtype=jnp.float32),
    }
    return TrainState(state.step + 1, params, target_params, opt_state), metrics


def forward(
    params: Params, target_params: Params, batch: Batch, networks: Networks, objective: Objective
) -> tuple[dict[str, jax.Array], list[Reading]]:
    """The loss terms of a batch, and what each predictor layer read."""
    images = layers.normalise_images(batch.images)
    targets_BxMxTxD = target_features(target_params, images, batch.target_indices, networks)
    context_BxKxD = networks.encoder.apply(
        {"params": params["encoder"]}, images, batch.context_indices, batch.context_valid
    )
    vectors = networks.text.apply({"params": params["text"]}, batch.caption_ids, batch.word_valid)
    words = Words(vectors, batch.word_valid, batch.caption_valid)
    predicted_BxMxTxD, readings = networks.predictor.apply(
        {"params": params["predictor"]},
        context_BxKxD,
        batch.context_indices,
        batch.context_valid,
        batch.target_indices,
        batch.target_valid,
        words,
    )
    terms = loss_terms(
        predicted_BxMxTxD,
        targets_BxMxTxD,
        batch.target_valid,
        token_validity(batch),
        readings,
        words,
        objective.prediction,
    )
    return terms, readings


def token_validity(batch: Batch) -> jax.Array:
    """Which tokens of the predictor's sequences are real: bool [B, M, K + T]."""
    B, M, _ = batch.target_valid.shape
    context_valid = jnp.broadcast_to(batch.context_valid[:, None], (B, M, batch.context_valid.shape[-1]))
    return jnp.concatenate([context_valid, batch.target_valid], axis=2)


def target_features(
    target_params: Params, images: jax.Array, target_indices_BxMxT: jax.Array, networks: Networks
) -> jax.Array:
    """What is to be predicted, [B, M, T, D]: the target encoder sees the whole image; no gradient flows back."""
    B, M, T = target_indices_BxMxT.shape
    features_BxNxD = normalise_targets(networks.encoder.apply({"params": target_params}, images))
    chosen = layers.gather_tokens(features_BxNxD, target_indices_BxMxT.reshape(B, M * T))
    return jax.lax.stop_gradient(chosen.reshape(B, M, T, -1))


def update_target(target_params: Params, encoder_params: Params, momentum: jax.Array) -> Params:
    """theta_bar <- m theta_bar + (1 - m) theta."""
    return jax.tree.map(
        lambda target, online: momentum * target + (1.0 - momentum) * online, target_params, encoder_params
    )
