"""One training step as a pure function. It runs without jit and without a mesh on any batch: so it is tested."""

import jax
import optax

from tc_jepa.methods.method import Batch, Method, Metrics
from tc_jepa.models.layers import Params
from tc_jepa.optimizer import Schedules
from tc_jepa.state import TrainState


def train_step(
    state: TrainState,
    batch: Batch,
    frozen: Params,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    schedules: Schedules,
    seed: int,
) -> tuple[TrainState, Metrics]:
    """One update of the trained parameters, then of the method's extra state.

    Args:
      state: the state before the step.
      batch: the global batch.
      frozen: parameters of networks that are never trained, by name (a T5's under "text").
      method: what is learned.
      optimizer: an optax transformation of the trained parameters.
      schedules: of the optimizer, for the log.
      seed: of the random draws that the method makes in a step; they are a function of (seed, step).

    Returns:
      The state after the step, and its metrics: float32 scalars of the loss, the method and the optimizer.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of(params):
        return method.loss({**frozen, **params}, state.extra, batch, key, state.step)

    (loss, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = method.after_update(state.extra, params, state.step)
    metrics = {"loss": loss, **metrics} | {
        "learning_rate": schedules.learning_rate(state.step + 1),
        "weight_decay": schedules.weight_decay(state.step + 1),
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, params, extra, opt_state), metrics
