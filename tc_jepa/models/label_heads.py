"""Linear classifiers on pooled features, one for each task."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers


class LabelHeads(nn.Module):
    """Features [..., D] -> by task, logits float32 [..., classes]."""

    classes: tuple[tuple[str, int], ...]  # (task, its number of classes)
    linear: layers.Linear = layers.Linear()

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        # In float32 like the loss: bfloat16 would round each logit to 8 significant bits.
        linear = dataclasses.replace(self.linear, dtype=jnp.float32)
        return {name: linear(count, name)(x) for name, count in self.classes}
