"""The space in which contrastive methods compare images and captions."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers

MOST_SCALE = 100.0  # of the logits, as in CLIP (arXiv 2103.00020, section 2.5)


class Shared(NamedTuple):
    """Images and captions in one space, not normalised, and how their cosines become logits: scale * cosine + bias."""

    images: jax.Array  # float32 [..., P]
    texts: jax.Array  # float32 [..., P]
    scale: jax.Array  # float32 scalar, the inverse temperature
    bias: jax.Array  # float32 scalar


class SharedSpace(nn.Module):
    """Features of images [..., D] and of captions [..., E] -> Shared, by one linear layer without bias for each.

    The logarithm of the scale is learned, and so is the bias.
    """

    width: int  # P
    scale: float  # at the start
    bias: float  # at the start
    linear: layers.Linear = layers.Linear()

    @nn.compact
    def __call__(self, images: jax.Array, texts: jax.Array) -> Shared:
        log_scale = self.param("scale", nn.initializers.constant(math.log(self.scale)), ())
        bias = self.param("bias", nn.initializers.constant(self.bias), ())
        shared = [
            self.linear.scaled(x.shape[-1])(self.width, name, use_bias=False)(x).astype(jnp.float32)
            for name, x in (("image", images), ("text", texts))
        ]
        return Shared(*shared, jnp.minimum(jnp.exp(log_scale), MOST_SCALE), bias)
