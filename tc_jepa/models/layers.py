"""Layers that encoder and predictor share: patches of images, positions, attention, MLP, the pre-norm block.

Parameters and the residual stream are float32, matrix products in `Linear.dtype`, softmax and LayerNorm in float32.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models.kernels.attention import Attend, attend
from tc_jepa.models.kernels.product import product

Params = Mapping[str, Any]  # a module's parameters, nested by name

LAYER_NORM_EPSILON = 1e-6
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

OFFICIAL_STD = 0.02
HEAD_CHANNELS = 64  # of an attention head, as in ViT-B and L


@dataclasses.dataclass(frozen=True)
class Linear:
    """Makes the linear layers of a network: their dtype and initial weights.

    `std` is the standard deviation of initial kernels. The official code initialises depending on depth, then
    overwrites every linear layer with an effectively untruncated normal(0.02) (ijepa src/helper.py:86-99,
    src/utils/tensors.py:17-50); its released models started from that. At widths around 1,000 this keeps about half of
    a signal's size. A much narrower network needs a larger `std`: else it is nearly linear at first, and for long.
    `depth_rescaled` keeps what the official code overwrites: smaller initial kernels in layers that write to the
    residual stream, the deeper the smaller.
    """

    dtype: jnp.dtype = jnp.float32
    std: float = OFFICIAL_STD
    depth_rescaled: bool = False

    @property
    def init(self) -> nn.initializers.Initializer:
        return nn.initializers.normal(self.std)

    def into_residual(self, block: int) -> "Linear":
        """For the last layer of attention and MLP in 0-based `block`: with depth_rescaled, std / sqrt(2 (block + 1))
        (ijepa src/models/vision_transformer.py:264-270)."""
        return dataclasses.replace(self, std=self.std / (2 * (block + 1)) ** 0.5) if self.depth_rescaled else self

    def scaled(self, inputs: int) -> "Linear":
        """LeCun's: std 1 / sqrt(inputs), with which outputs are as large as the inputs whatever their number."""
        return dataclasses.replace(self, std=inputs**-0.5)

    def __call__(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=self.init,
            dot_general=dense_product,
            name=name,
        )


def attention_heads(width: int) -> int:
    """The number of attention heads, of about HEAD_CHANNELS channels each, that divides a width."""
    return max(h for h in range(1, max(1, width // HEAD_CHANNELS) + 1) if width % h == 0)


def dense_product(x: jax.Array, kernel: jax.Array, dimension_numbers, precision=None) -> jax.Array:
    """The product of nn.Dense: kernels.product."""
    del dimension_numbers, precision  # nn.Dense always contracts x's last axis with the kernel's first
    return product(x, kernel)


def layer_norm(name: str | None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=jnp.float32, name=name)


def normalise_images(images: jax.Array) -> jax.Array:
    """uint8 [..., 3] in 0-255 -> float32, minus ImageNet's mean and divided by its standard deviation."""
    return normalise_unit_images(images.astype(jnp.float32) / 255.0)


def normalise_unit_images(images: jax.Array) -> jax.Array:
    """`normalise_images` for float32 [..., 3] in 0-1."""
    return (images - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def patchify(images_BxHxWx3: jax.Array, patch_size: int) -> jax.Array:
    """[B, H, W, 3] -> [B, N, patch_size * patch_size * 3]: patches row-major, within one (row, column, channel)."""
    B, height, width, channels = images_BxHxWx3.shape
    rows, columns = height // patch_size, width // patch_size
    x = images_BxHxWx3.reshape(B, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, patch_size * patch_size * channels)


def gather_tokens(x_BxNxD: jax.Array, indices_BxK: jax.Array) -> jax.Array:
    """The chosen tokens of each image: [B, N, D], int [B, K] -> [B, K, D]."""
    return jnp.take_along_axis(x_BxNxD, indices_BxK[..., None], axis=1)


def masked_softmax(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """Softmax over the valid entries of the last axis; 0, with finite gradients, if none is valid."""
    weights = jax.nn.softmax(jnp.where(valid, logits, -1e30), axis=-1)
    return jnp.where(valid, weights, 0.0)


@struct.dataclass
class Modulation:
    """Scales and shifts of the outputs of a block's two LayerNorms; each broadcasts to the block's tokens."""

    scale1: jax.Array | float = 0.0  # added to 1
    shift1: jax.Array | float = 0.0
    scale2: jax.Array | float = 0.0
    shift2: jax.Array | float = 0.0


UNMODULATED = Modulation()


class SelfAttention(nn.Module):
    """Multi-head self-attention, with the fused qkv of the official weights: [B, L, D] -> [B, L, D]."""

    heads: int
    linear: Linear
    output: Linear
    attend: Attend = attend

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, valid_BxL: jax.Array | None) -> jax.Array:
        D = x_BxLxD.shape[-1]
        qkv = self.linear(3 * D, "qkv")(x_BxLxD)
        attend_with = attend if self.is_initializing() else self.attend  # a kernel wants whole batches
        return self.output(D, "proj")(attend_with(qkv, valid_BxL, self.heads))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the share of a standard normal distribution below x, as torch computes it.

    jax.nn.gelu has erfc, which kernels for TPUs cannot compute. The gradient is written out so that only x is kept.
    """
    return (x * _normal_share(x)).astype(x.dtype)


def _normal_share(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x.astype(jnp.float32) * 0.5**0.5))


def _gelu_backward(x, gradient):
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * jnp.square(y)) / (2 * math.pi) ** 0.5
    return ((gradient * (_normal_share(x) + y * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear to `width` channels."""

    hidden: int
    width: int
    linear: Linear
    output: Linear

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.width, "fc2")(gelu(self.linear(self.hidden, "fc1")(x)))


def rematerialised(module: type[nn.Module], remat: bool) -> type[nn.Module]:
    """Returns a module class whose instances keep only their inputs for the backward pass, if `remat`.

    Everything between is computed again there. Parameters, their names and results are those of `module`.
    """
    return nn.remat(module, policy=jax.checkpoint_policies.nothing_saveable) if remat else module


class Block(nn.Module):
    """Pre-norm transformer block. `index` is its 0-based position in the network, `modulation` acts on its LayerNorms.

    No token attends to padded tokens (valid False); their own output is to be ignored.
    """

    index: int
    heads: int
    hidden: int
    linear: Linear
    attend: Attend = attend

    @nn.compact
    def __call__(
        self, x_BxLxD: jax.Array, valid_BxL: jax.Array | None = None, modulation: Modulation = UNMODULATED
    ) -> jax.Array:
        output = self.linear.into_residual(self.index)
        attention = SelfAttention(self.heads, self.linear, output, self.attend, name="attn")
        mlp = Mlp(self.hidden, x_BxLxD.shape[-1], self.linear, output, name="mlp")
        normed = layer_norm("norm1")(x_BxLxD) * (1.0 + modulation.scale1) + modulation.shift1
        x = x_BxLxD + attention(normed, valid_BxL).astype(x_BxLxD.dtype)
        return x + mlp(layer_norm("norm2")(x) * (1.0 + modulation.scale2) + modulation.shift2).astype(x.dtype)
