"""AdamW, its parameter groups, and the schedules: pure functions of the step, so that a resume has nothing to replay.

Every schedule takes the number of the update, from 1 on, as the official code counts (it steps its schedulers before
the update, ijepa src/utils/schedulers.py:31-76).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Schedules:
    """Durations are in steps. A run may be shorter than its warm-up: it then ends on the ramp."""

    steps: int
    warmup_steps: int
    start_learning_rate: float
    peak_learning_rate: float
    final_learning_rate: float
    start_weight_decay: float
    final_weight_decay: float

    def learning_rate(self, update: jax.Array) -> jax.Array:
        """A linear ramp from start to peak, then a cosine to final."""
        ramp = linear(self.start_learning_rate, self.peak_learning_rate, update / max(1, self.warmup_steps))
        progress = (update - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return jnp.where(
            update < self.warmup_steps, ramp, cosine(self.peak_learning_rate, self.final_learning_rate, progress)
        )

    def weight_decay(self, update: jax.Array) -> jax.Array:
        """A cosine from start to final over the whole run, without warm-up."""
        return cosine(self.start_weight_decay, self.final_weight_decay, update / self.steps)


def linear(start: float, end: float, progress: jax.Array) -> jax.Array:
    return start + progress * (end - start)


def cosine(start: float, end: float, progress: jax.Array) -> jax.Array:
    return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


# Whether a parameter decays, by its path; the first match wins. As in the official code, biases and norms do not and
# the mask token does (ijepa src/helper.py:121-139). A word table is looked up, not multiplied: decay would only pull
# rare words, which seldom see a gradient, to zero.
WEIGHT_DECAY_RULES = (
    (r".*/bias", False),
    (r".*/scale", False),
    (r"text/(words|positions)", False),
    (r".*/kernel", True),
    (r"predictor/mask_token", True),
    (r"predictor/conditioner/(.*/)?fusion(_\d+)?/query", True),
)


def match_rules(rules: Sequence[tuple[str, Any]], params: Mapping) -> Mapping:
    """A tree like `params` of the value of the first rule whose regex matches the whole path, such as a/b/kernel.

    Raises ValueError naming every path that no rule covers.
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
    return optax.adamw(
        learning_rate=lambda count: schedules.learning_rate(count + 1),
        b1=beta1,
        b2=beta2,
        eps=epsilon,
        weight_decay=lambda count: schedules.weight_decay(count + 1),
        mask=lambda params: match_rules(WEIGHT_DECAY_RULES, params),
    )
