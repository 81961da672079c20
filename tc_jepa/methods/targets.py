"""The targets of a JEPA's predictor: four kinds with one contract."""

import dataclasses
from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp

from tc_jepa.models import layers
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import VisionTransformer

NORMALISATIONS = ("none", "layer", "batch", "instance")
NORM_EPSILON = 1e-5  # torch's default, which the official code uses here (ijepa src/train.py:301)
PIXEL_EPSILON = 1e-6  # added to a patch's variance


@dataclasses.dataclass(frozen=True)
class Momentum:
    """EMA momentum by number of finished steps: linear from `start` to `end` over `steps` (ijepa src/train.py:228)."""

    start: float
    end: float
    steps: int

    def __call__(self, step: jax.Array) -> jax.Array:
        return self.start + step / self.steps * (self.end - self.start)


class Target(Protocol):
    """What is predicted, as pure functions of its parameters ({} if it has none)."""

    @property
    def width(self) -> int:
        """Number of channels of the features."""

    def init(self, encoder_params: Params) -> Params:
        """The target's parameters at the start of a run."""

    @property
    def learns(self) -> bool:
        """Whether gradients flow back through the targets."""

    def chosen_params(self, params: Params, encoder_params: Params) -> Params:
        """The parameters that `features` takes: the target's own, or the encoder's."""

    def features(self, params: Params, images_BxHxWx3: jax.Array) -> jax.Array:
        """The features to predict at each patch, float32 [B, N, width], from normalised images."""

    @property
    def whole_batch(self) -> bool:
        """Whether the targets of an image depend on the other images of its batch."""

    def standardise(self, chosen_BxMxTxD: jax.Array, valid_BxMxT: jax.Array) -> jax.Array:
        """What is predicted in place of the features at the target patches: the same unless they are standardised
        over the batch. `valid` marks the patches that are not padding."""

    def update(self, params: Params, encoder_params: Params, momentum: jax.Array) -> Params:
        """The target's parameters after a step."""

    def evaluation_params(self, params: Params, encoder_params: Params) -> Params:
        """The parameters of the encoder that is monitored and evaluated."""


class _Fixed:
    """What targets have in common that training does not change, unless they say otherwise."""

    learns: ClassVar[bool] = False

    def chosen_params(self, params: Params, encoder_params: Params) -> Params:
        return params

    def update(self, params: Params, encoder_params: Params, momentum: jax.Array) -> Params:
        return params

    def evaluation_params(self, params: Params, encoder_params: Params) -> Params:
        return encoder_params


@dataclasses.dataclass(frozen=True)
class _EncoderFeatures(_Fixed):
    """Features of an encoder that sees the whole image.

    `normalise` says over what they are standardised, to mean 0 and variance 1 without parameters: "layer" over the
    channels of each patch, a LayerNorm as in I-JEPA's code; "instance" each channel over the patches of an image;
    "batch" each channel over the target patches of the global batch; "none". A vector that all patches of a batch share
    survives "layer" but neither of the others. "instance" removes what the patches of one image have in common, too.
    """

    encoder: VisionTransformer
    normalise: Literal["none", "layer", "batch", "instance"]

    @property
    def width(self) -> int:
        return self.encoder.size.width

    @property
    def whole_batch(self) -> bool:
        return self.normalise == "batch"

    def features(self, params: Params, images_BxHxWx3: jax.Array) -> jax.Array:
        features_BxNxD = self.encoder.apply({"params": params}, images_BxHxWx3)
        axis = {"layer": -1, "instance": -2}.get(self.normalise)
        return features_BxNxD if axis is None else jax.nn.standardize(features_BxNxD, axis=axis, epsilon=NORM_EPSILON)

    def standardise(self, chosen_BxMxTxD: jax.Array, valid_BxMxT: jax.Array) -> jax.Array:
        if not self.whole_batch:
            return chosen_BxMxTxD
        weights = valid_BxMxT[..., None] / jnp.maximum(valid_BxMxT.sum(), 1)
        centred = chosen_BxMxTxD - (weights * chosen_BxMxTxD).sum(axis=(0, 1, 2))
        return centred * jax.lax.rsqrt((weights * jnp.square(centred)).sum(axis=(0, 1, 2)) + NORM_EPSILON)


class EmaEncoder(_EncoderFeatures):
    """An exponential moving average of the encoder, theta_bar <- m theta_bar + (1 - m) theta: JEPA's target."""

    def init(self, encoder_params: Params) -> Params:
        return jax.tree.map(jnp.copy, encoder_params)  # a buffer cannot be donated twice, as an alias would be

    def update(self, params: Params, encoder_params: Params, momentum: jax.Array) -> Params:
        return jax.tree.map(lambda average, new: momentum * average + (1.0 - momentum) * new, params, encoder_params)

    def evaluation_params(self, params: Params, encoder_params: Params) -> Params:
        return params


class FrozenTarget(_EncoderFeatures):
    """A teacher that never changes (SALT, "Rethinking JEPA"). It may differ from the encoder in size."""

    def init(self, encoder_params: Params) -> Params:
        raise ValueError("a frozen target takes its parameters from a teacher: pass them to Jepa.init as given_extra")


class OnlineEncoder(_EncoderFeatures):
    """The trained encoder itself, with its gradient: no teacher, as in LeJEPA. Has no parameters of its own.

    Constant features are predicted without error, so only a term that acts on their distribution prevents them
    (methods/anti_collapse.py).
    """

    learns = True

    def init(self, encoder_params: Params) -> Params:
        return {}

    def chosen_params(self, params: Params, encoder_params: Params) -> Params:
        return encoder_params


@dataclasses.dataclass(frozen=True)
class Pixels(_Fixed):
    """The hidden patches, each with its own mean and deviation removed (MAE, He et al. 2021). Has no parameters."""

    patch_size: int

    @property
    def width(self) -> int:
        return 3 * self.patch_size**2

    @property
    def whole_batch(self) -> bool:
        return False

    def init(self, encoder_params: Params) -> Params:
        return {}

    def features(self, params: Params, images_BxHxWx3: jax.Array) -> jax.Array:
        return jax.nn.standardize(layers.patchify(images_BxHxWx3, self.patch_size), axis=-1, epsilon=PIXEL_EPSILON)

    def standardise(self, chosen_BxMxTxD: jax.Array, valid_BxMxT: jax.Array) -> jax.Array:
        return chosen_BxMxTxD
