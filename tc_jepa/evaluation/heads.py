"""Trains banks of heads on frozen features: many settings of a few architectures at once.

All heads of a bank start from the same parameters and see the same batches. Each has its own learning rate, weight
decay and optimiser state, so that a bank gives what its heads give when they are trained one at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.evaluation import labels
from tc_jepa.evaluation.encoder import full_precision
from tc_jepa.evaluation.scores import Truth, value_of
from tc_jepa.evaluation.task import Outcome, TaskInputs
from tc_jepa.models.layers import Params

WARMUP = 0.1  # of the steps of rate_fractions
LOSSES = {  # of one example, by kind of label set: [..., C], [..., C] -> [...]
    "single": optax.softmax_cross_entropy,
    "multi": lambda logits, classes: optax.sigmoid_binary_cross_entropy(logits, classes).sum(axis=-1),
}


def adamw(rate: jax.Array | float, weight_decay: jax.Array | float) -> optax.GradientTransformation:
    """AdamW for one head. Weight decay leaves out biases and the parameters of LayerNorm."""
    return optax.adamw(rate, weight_decay=weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params))


class Head(NamedTuple):
    """One architecture with its loss and optimiser. Hashable: a step is compiled once for equal heads and shapes."""

    loss: Callable[..., jax.Array]  # (parameters, batch, *about): the mean loss of one head over a batch, a scalar
    about: tuple = ()
    # (rate, weight decay): the optimiser of one head; its state does not depend on the arguments.
    optimizer: Callable[..., optax.GradientTransformation] = adamw


class Bank(NamedTuple):
    """Heads of one architecture before training."""

    head: Head
    initial: Params  # of one head; all start from it
    settings: Sequence[tuple[float, float]]  # learning rate and weight decay of each head


def train(banks: Sequence[Bank], batches: Iterable[Any], rate_fractions: Iterable[float]) -> list[Params]:
    """The trained parameters of each bank, with a leading axis for its settings.

    Every head takes one step for each batch, at its learning rate times the step's fraction. The fractions are as many
    as the batches.
    """
    heads = tuple(bank.head for bank in banks)
    settings = [np.array(bank.settings) for bank in banks]
    params, states = _initial([bank.initial for bank in banks], heads, tuple(len(bank.settings) for bank in banks))
    for batch, fraction in zip(batches, rate_fractions, strict=True):
        params, states = _step(params, states, batch, [setting * (fraction, 1.0) for setting in settings], heads)
    return params


def rate_fractions(steps: int) -> np.ndarray:
    """The fraction of the rate at each step, float [steps]: a linear ramp to 1, then a cosine to 0."""
    done = np.arange(1, steps + 1) / steps
    return np.where(done < WARMUP, done / WARMUP, 0.5 + 0.5 * np.cos(np.pi * (done - WARMUP) / (1 - WARMUP)))


@functools.partial(jax.jit, static_argnames=("heads", "counts"))
def _initial(initial: list[Params], heads: tuple[Head, ...], counts: tuple[int, ...]) -> tuple[list, list]:
    params = [
        jax.tree.map(lambda x, n=count: jnp.tile(x, (n, *[1] * x.ndim)), one) for one, count in zip(initial, counts)
    ]
    return params, [jax.vmap(head.optimizer(0.0, 0.0).init)(bank) for head, bank in zip(heads, params)]


@functools.partial(jax.jit, static_argnames="heads", donate_argnames=("params", "states"))
@full_precision
def _step(params: list, states: list, batch: Any, settings: list, heads: tuple[Head, ...]) -> tuple[list, list]:
    def step(head: Head, one: Params, state: Any, setting: jax.Array) -> tuple[Params, Any]:
        updates, state = head.optimizer(*setting).update(jax.grad(head.loss)(one, batch, *head.about), state, one)
        return optax.apply_updates(one, updates), state

    stepped = [
        jax.vmap(functools.partial(step, head))(*bank) for head, bank in zip(heads, zip(params, states, settings))
    ]
    return [bank for bank, _ in stepped], [state for _, state in stepped]


class Fitted(NamedTuple):
    """The class scores of the chosen head of a bank, and how it was chosen. A setting is a record with a `rate`."""

    scores: np.ndarray  # float32 [test examples, C]
    chosen: NamedTuple
    sweep: dict[NamedTuple, float]  # every head's score on the train examples held out, in 0-1


def fit_best(
    settings: Sequence[NamedTuple],
    truths: Mapping[str, Truth],
    held_out: np.ndarray,
    fit: Callable,
    validation: Any,
    test: Any,
) -> dict[str, Fitted]:
    """For every label set the head that is best on the held-out train examples, fitted again on all of them.

    Of equals, it is the first. `fit(settings, rows, truth)` trains a bank on those rows of the train examples and
    returns a function from features to the class scores [n, C] of each head. `validation` are features of the rows
    `held_out`, bool [train examples].
    """
    found = {}
    for name, (kind, classes) in truths.items():
        scores = fit(settings, ~held_out, Truth(kind, classes[~held_out]))(validation)
        sweep = dict(zip(settings, (value_of(Truth(kind, classes[held_out]), x) for x in scores), strict=True))
        chosen = max(sweep, key=sweep.get)
        (scores,) = fit([chosen], slice(None), Truth(kind, classes))(test)
        found[name] = Fitted(scores, chosen, sweep)
    return found


def outcome(inputs: TaskInputs, score: str, found: Mapping[str, Fitted], name: Callable[[NamedTuple], str]) -> Outcome:
    """The scores and sweeps of fitted heads, by label set. `name` names a setting without its attribute `rate`."""
    answers = {
        (score, label_set): labels.Answer(
            [fitted.scores],
            {(name(setting), setting.rate): value for setting, value in fitted.sweep.items()},
            f"{name(fitted.chosen)}, rate {fitted.chosen.rate:g}",
        )
        for label_set, fitted in found.items()
    }
    return labels.outcome(inputs, answers)
