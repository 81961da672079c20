"""The train state."""

from flax import struct
import jax
import jax.numpy as jnp
import optax

from tc_jepa.methods.method import Batch, Method
from tc_jepa.models.layers import Params


@struct.dataclass
class TrainState:
    """Everything that a step changes.

    `step` is the number of finished steps, int32. `params` are the trained parameters by name of network. `extra` is
    the method's own state, such as an average of the encoder; the optimizer never sees it.
    """

    step: jax.Array
    params: Params
    extra: Params
    opt_state: optax.OptState


def initial_state(
    method: Method,
    example: Batch,
    optimizer: optax.GradientTransformation,
    seed: int,
    frozen: Params,
    given: Params | None = None,
    given_extra: Params | None = None,
) -> TrainState:
    """Returns the state before the first step. See Method.init for `example`, `frozen` and what may be given."""
    params, extra = method.init(jax.random.key(seed), example, frozen, given, given_extra)
    return TrainState(jnp.zeros((), jnp.int32), params, extra, optimizer.init(params))
