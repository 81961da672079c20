"""AdamW, which parameters decay, and the schedules.

Schedules are pure functions of the step, so a resumed run has nothing to replay. A schedule takes the number of the
update, starting from 1: the official code steps its schedulers before the update (ijepa src/utils/schedulers.py:31-76).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tc_jepa.models.conditioners import CONDITIONERS


@dataclasses.dataclass(frozen=True)
class Schedules:
    """Schedules of learning rate and weight decay. Durations are in steps.

    A run may be shorter than its warm-up: it then ends on the ramp.
    """

    steps: int
    warmup_steps: int
    start_learning_rate: float
    peak_learning_rate: float
    final_learning_rate: float
    start_weight_decay: float
    final_weight_decay: float

    def learning_rate(self, update: jax.Array) -> jax.Array:
        """The learning rate of an update: a linear ramp from start to peak, then a cosine to final."""
        ramp = linear(self.start_learning_rate, self.peak_learning_rate, update / max(1, self.warmup_steps))
        progress = (update - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return jnp.where(
            update < self.warmup_steps, ramp, cosine(self.peak_learning_rate, self.final_learning_rate, progress)
        )

    def weight_decay(self, update: jax.Array) -> jax.Array:
        """The weight decay of an update: a cosine from start to final over the whole run, without warm-up."""
        return cosine(self.start_weight_decay, self.final_weight_decay, update / self.steps)


REFERENCE_BATCH = 2048  # images a step, as in I-JEPA's and the paper's recipes
EXPONENTS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def rate_scale(rule: str, batch_size: int) -> float:
    """The factor of learning rates that are given for REFERENCE_BATCH images, at another batch size.

    "linear" is for SGD (Goyal et al. 2017, arXiv 1706.02677), "sqrt" for Adam (Malladi et al. 2022, arXiv 2205.10287).
    """
    return (batch_size / REFERENCE_BATCH) ** EXPONENTS[rule]


def linear(start: float, end: float, progress: jax.Array) -> jax.Array:
    """`start` at progress 0, `end` at 1, on a line."""
    return start + progress * (end - start)


def cosine(start: float, end: float, progress: jax.Array) -> jax.Array:
    """`start` at progress 0, `end` at 1, on half a cosine wave."""
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


# Whether a parameter decays, by its path. As in the official code, biases and norms do not decay and the mask token
# does (ijepa src/helper.py:121-139). A word table is looked up, not multiplied: decay would only move rare words, which
# seldom have a gradient, to zero.
GENERAL_RULES = (
    (r".*/bias", False),
    (r".*/scale", False),
    (r"text/(words|positions)", False),
    (r".*/kernel", True),
    (r"predictor/mask_token", True),
)


def weight_decay_rules() -> tuple[tuple[str, bool], ...]:
    """Returns (regex, decays) pairs for `match_rules`: those that conditioners declare, then GENERAL_RULES."""
    declared = {
        (f"predictor/conditioner/(?:{pattern})", decays): None
        for conditioner in CONDITIONERS.values()
        for pattern, decays in conditioner.weight_decay_rules
    }
    return (*declared, *GENERAL_RULES)


def match_rules(rules: Sequence[tuple[str, Any]], params: Mapping) -> Mapping:
    """Returns a tree like `params` with the value of the first rule whose regex matches the path of a parameter.

    A regex must match the whole path, such as a/b/kernel. Raises ValueError that names every path without a rule.
    """
    uncovered = []

    def value(path, _):
        name = "/".join(str(entry.key) for entry in path)
        for pattern, result in rules:
            if re.fullmatch(pattern, name):
                return result
        uncovered.append(name)

    tree = jax.tree_util.tree_map_with_path(value, params)
    if uncovered:
        raise ValueError(f"no rule covers the parameters {', '.join(uncovered)}")
    return tree


def adamw(schedules: Schedules, beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """AdamW as in torch: an update also subtracts learning rate x weight decay x parameter where a rule says so."""
    return optax.adamw(
        learning_rate=lambda count: schedules.learning_rate(count + 1),
        b1=beta1,
        b2=beta2,
        eps=epsilon,
        weight_decay=lambda count: schedules.weight_decay(count + 1),
        mask=lambda params: match_rules(weight_decay_rules(), params),
    )
