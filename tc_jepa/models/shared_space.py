"""The space in which contrastive methods compare images and captions."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers

CLIP_SCALE = 100.0  # the most, as in CLIP (arXiv 2103.00020, section 2.5)


class Shared(NamedTuple):
    """Images and captions in one space, not normalised, and how their cosines become logits: scale * cosine + bias."""

    images: jax.Array  # float32 [..., P]
    texts: jax.Array  # float32 [..., P]
    scale: jax.Array  # float32 scalar, the inverse temperature
    bias: jax.Array  # float32 scalar


class SharedSpace(nn.Module):
    """Features of images [..., D] and of captions [..., E] -> Shared, by one linear layer without bias for each.

    The logarithm of the scale is learned, and so is the bias. A scale above `most_scale` counts as that, with the
    gradient of the scale itself, so that it can fall again.
    """

    width: int  # P
    scale: float  # at the start
    bias: float  # at the start
    most_scale: float = CLIP_SCALE
    linear: layers.Linear = layers.Linear()

    @nn.compact
    def __call__(self, images: jax.Array, texts: jax.Array) -> Shared:
        log_scale = self.param("scale", nn.initializers.constant(math.log(self.scale)), ())
        bias = self.param("bias", nn.initializers.constant(self.bias), ())
        shared = [
            self.linear.scaled(x.shape[-1])(self.width, name, use_bias=False)(x).astype(jnp.float32)
            for name, x in (("image", images), ("text", texts))
        ]
        excess = jax.lax.stop_gradient(jnp.maximum(log_scale - math.log(self.most_scale), 0.0))
        return Shared(*shared, jnp.exp(log_scale - excess), bias)
