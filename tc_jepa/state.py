"""The train state, and how it begins."""

from typing import Any, NamedTuple

from flax import struct, traverse_util
import jax
import jax.numpy as jnp
import optax

from tc_jepa.batch import Batch
from tc_jepa.methods.targets import Target
from tc_jepa.models.conditioners.base import Words
from tc_jepa.models.layers import Params
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.text.embedding import EmbeddingText, StoredWords
from tc_jepa.models.text.t5 import T5Encoder
from tc_jepa.models.vit import VisionTransformer


class Networks(NamedTuple):
    """The modules, whose parameters live under the same names, and the target, whose parameters are the state's.

    Text parameters that are trained live in the state, others among the step's frozen ones. `text` is None where the
    predictor reads no words (I-JEPA). `joint_targets`: all target blocks share one sequence of the predictor.
    """

    encoder: VisionTransformer
    predictor: Predictor
    text: EmbeddingText | StoredWords | T5Encoder | None
    target: Target
    joint_targets: bool = False


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    `step` counts finished steps. `params` are trained; `target_params` belong to the target (an EMA of the encoder's,
    or a teacher's that stay as they are), and the optimizer never sees them.
    """

    step: jax.Array
    params: Params
    target_params: Params
    opt_state: optax.OptState


def initial_state(
    networks: Networks,
    example: Batch,
    optimizer: optax.GradientTransformation,
    seed: int,
    frozen: Params,
    teacher: Params | None = None,
    given: Params | None = None,
) -> TrainState:
    """The state before the first step. `example`, one row of a batch, only gives shapes.

    `frozen` holds parameters that are not trained, by the name of their network. `given` parameters, nested as the
    trained ones, take the place of their initial values. The target starts from the teacher's parameters, or where
    there is no teacher from the encoder's.
    """
    one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), example)
    params = {"encoder": initial_encoder_params(networks.encoder, example.images.shape, seed)}
    text_key, predictor_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    words = None
    if networks.text is not None:
        if "text" in frozen:
            vectors = networks.text.apply({"params": frozen["text"]}, one.caption_words, one.word_valid)
        else:
            params["text"], vectors = initialise(networks.text, text_key, one.caption_words, one.word_valid)
        words = Words(vectors, one.word_valid, one.caption_valid)
    params["predictor"], _ = initialise(
        networks.predictor,
        predictor_key,
        jnp.zeros((*one.context_indices.shape, networks.encoder.size.width)),
        one.context_indices,
        one.context_valid,
        one.target_indices,
        one.target_valid,
        words,
    )
    if given:
        params = merge(params, given)
    target_params = networks.target.begin(params["encoder"] if teacher is None else teacher)
    return TrainState(jnp.zeros((), jnp.int32), params, target_params, optimizer.init(params))


def merge(params: Params, given: Params) -> Params:
    """`params` with those of `given` in their places, at any depth."""
    return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | traverse_util.flatten_dict(given))


def initial_encoder_params(encoder: VisionTransformer, image_shape: tuple[int, int, int], seed: int) -> Params:
    """The encoder's parameters before training: a function of `seed` alone, whatever else the run trains."""
    params, _ = initialise(encoder, jax.random.fold_in(jax.random.key(seed), 0), jnp.zeros((1, *image_shape)))
    return params


def initialise(module, key: jax.Array, *arguments) -> tuple[Params, Any]:
    output, variables = module.init_with_output(key, *arguments)
    return variables["params"] if variables else {}, output
