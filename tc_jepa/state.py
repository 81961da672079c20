"""The train state, and how it begins."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from tc_jepa.batch import Batch
from tc_jepa.models.conditioner import Words
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.text import EmbeddingText
from tc_jepa.models.vit import VisionTransformer

Params = Mapping[str, Any]


class Networks(NamedTuple):
    """The modules; their parameters live in the state under the same names. The target encoder is `encoder` again."""

    encoder: VisionTransformer
    predictor: Predictor
    text: EmbeddingText


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    `step` counts finished steps. `params` are trained; `target_params`, the target encoder's, follow the encoder's as
    an exponential moving average, and the optimizer never sees them.
    """

    step: jax.Array
    params: Params
    target_params: Params
    opt_state: optax.OptState


def initial_state(networks: Networks, example: Batch, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step. `example`, one row of a batch, only gives shapes.

    The target encoder starts as a copy of the encoder.
    """
    one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), example)
    encoder = initial_encoder_params(networks.encoder, example.images.shape, seed)
    text_key, predictor_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    text, vectors = initialise(networks.text, text_key, one.caption_ids, one.word_valid)
    predictor, _ = initialise(
        networks.predictor,
        predictor_key,
        jnp.zeros((*one.context_indices.shape, networks.encoder.size.width)),
        one.context_indices,
        one.context_valid,
        one.target_indices,
        one.target_valid,
        Words(vectors, one.word_valid, one.caption_valid),
    )
    params = {"encoder": encoder, "predictor": predictor, "text": text}
    # A real copy: an aliased buffer could not be donated twice.
    target_params = jax.tree.map(jnp.copy, encoder)
    return TrainState(jnp.zeros((), jnp.int32), params, target_params, optimizer.init(params))


def initial_encoder_params(encoder: VisionTransformer, image_shape: tuple[int, int, int], seed: int) -> Params:
    """The encoder's parameters before training: a function of `seed` alone, whatever else the run trains."""
    params, _ = initialise(encoder, jax.random.fold_in(jax.random.key(seed), 0), jnp.zeros((1, *image_shape)))
    return params


def initialise(module, key: jax.Array, *arguments) -> tuple[Params, Any]:
    output, variables = module.init_with_output(key, *arguments)
    return variables["params"] if variables else {}, output
