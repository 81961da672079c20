"""What the predictor has to predict. Three kinds, one signature.

`begin` makes the target's parameters at the start of a run, `features` the values to predict at every patch, `follow`
the parameters after a step, and `judged` names the encoder that the run is for: the one to monitor and to evaluate.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from tc_jepa.models import layers
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import VisionTransformer

NORM_EPSILON = 1e-5  # torch's default, which the official code uses here (ijepa src/train.py:301)
PIXEL_EPSILON = 1e-6  # of a patch's variance


class Target(Protocol):
    @property
    def width(self) -> int:
        """Channels of what is predicted."""

    def begin(self, encoder_params: Params) -> Params: ...

    def features(self, params: Params, images_BxHxWx3: jax.Array) -> jax.Array:
        """float32 [B, N, width], from normalised images."""

    def follow(self, params: Params, encoder_params: Params, momentum: jax.Array) -> Params: ...

    def judged(self, params: Params, encoder_params: Params) -> Params: ...


@dataclasses.dataclass(frozen=True)
class _EncoderFeatures:
    """Features of an encoder that sees the whole image; `normalise`: through a LayerNorm without parameters."""

    encoder: VisionTransformer
    normalise: bool

    @property
    def width(self) -> int:
        return self.encoder.size.width

    def begin(self, encoder_params: Params) -> Params:
        return jax.tree.map(jnp.copy, encoder_params)  # an aliased buffer could not be donated twice

    def features(self, params: Params, images_BxHxWx3: jax.Array) -> jax.Array:
        features = self.encoder.apply({"params": params}, images_BxHxWx3)
        return jax.nn.standardize(features, axis=-1, epsilon=NORM_EPSILON) if self.normalise else features


class EmaEncoder(_EncoderFeatures):
    """JEPA's target: a slow copy of the encoder, theta_bar <- m theta_bar + (1 - m) theta, and what the run is for."""

    def follow(self, params: Params, encoder_params: Params, momentum: jax.Array) -> Params:
        return jax.tree.map(
            lambda target, online: momentum * target + (1.0 - momentum) * online, params, encoder_params
        )

    def judged(self, params: Params, encoder_params: Params) -> Params:
        return params


class FrozenEncoder(_EncoderFeatures):
    """A teacher that never changes ("Rethinking JEPA"): `begin` takes its parameters; it may differ in size."""

    def follow(self, params: Params, encoder_params: Params, momentum: jax.Array) -> Params:
        return params

    def judged(self, params: Params, encoder_params: Params) -> Params:
        return encoder_params


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The hidden patches themselves, each with its own mean and deviation taken out (He et al. 2021): no parameters."""

    patch_size: int

    @property
    def width(self) -> int:
        return 3 * self.patch_size**2

    def begin(self, encoder_params: Params) -> Params:
        return {}

    def features(self, params: Params, images_BxHxWx3: jax.Array) -> jax.Array:
        return jax.nn.standardize(layers.patchify(images_BxHxWx3, self.patch_size), axis=-1, epsilon=PIXEL_EPSILON)

    def follow(self, params: Params, encoder_params: Params, momentum: jax.Array) -> Params:
        return params

    def judged(self, params: Params, encoder_params: Params) -> Params:
        return encoder_params
