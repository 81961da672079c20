"""One training step as a pure function. It runs without jit and without a mesh on any batch: so it is tested."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
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
    accumulate: int = 1,
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
      accumulate: number of parts of the batch that are computed in turn, to save memory. It must divide the batch. The
        gradient is the mean of the parts' gradients, which is that of the whole batch only for a method whose loss is a
        mean over images; other methods raise ValueError. Random draws of a method differ between the parts.

    Returns:
      The state after the step, and its metrics: float32 scalars of the loss, the method and the optimizer.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_of(params, part, key):
        loss, metrics = method.loss({**frozen, **params}, state.extra, part, key, state.step)
        return loss, {"loss": loss, **metrics}

    gradient = jax.grad(loss_of, has_aux=True)
    if accumulate == 1:
        gradients, metrics = gradient(state.params, batch, key)
    else:
        if not method.mean_over_images:
            raise ValueError(f"the loss of {type(method).__name__} is that of a whole batch: accumulate must be 1")
        gradients, metrics = mean_over_parts(functools.partial(gradient, state.params), batch, key, accumulate)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = method.after_update(state.extra, params, state.step)
    metrics |= {
        "learning_rate": schedules.learning_rate(state.step + 1),
        "weight_decay": schedules.weight_decay(state.step + 1),
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, params, extra, opt_state), metrics


def mean_over_parts(function: Callable[[Batch, jax.Array], Any], batch: Batch, key: jax.Array, parts: int) -> Any:
    """Returns the mean of function(part, key) over `parts` equal parts of a batch, one after another.

    Part i is every row whose number is i modulo `parts`: so every device that holds a section of the batch holds an
    equal section of each part.
    """
    split = jax.tree.map(lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def step(total, part_and_key):
        return jax.tree.map(jnp.add, total, function(*part_and_key)), None

    part = jax.tree.map(lambda x: x[0], split)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, part, key))
    total, _ = jax.lax.scan(step, zeros, (split, jax.random.split(key, parts)))
    return jax.tree.map(lambda x: x / parts, total)
