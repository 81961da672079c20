"""Layers that the encoder and the predictor share: images to patches, positions, attention, MLP, the pre-norm block.

Parameters and the residual stream are float32, matrix products in `Linear.dtype`, softmax and LayerNorm in float32.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

LAYER_NORM_EPSILON = 1e-6
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

OFFICIAL_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Linear:
    """How the linear layers of a network compute and begin.

    The official code initialises depth-aware, then overwrites every linear layer with an effectively untruncated
    normal(0.02) (ijepa src/helper.py:86-99, src/utils/tensors.py:17-50): that is what its released models grew from.
    At widths around 1,000 this keeps about half of a signal's size; a much narrower network wants a larger `std`, or
    it begins as good as linear and takes long to leave that.
    """

    dtype: jnp.dtype = jnp.float32
    std: float = OFFICIAL_STD

    @property
    def init(self) -> nn.initializers.Initializer:
        return nn.initializers.normal(self.std)

    def __call__(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=self.init,
            dot_general=flat_dot_general,
            name=name,
        )


def flat_dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers, precision=None) -> jax.Array:
    """A dense layer's product with all leading axes of `x` merged, for nn.Dense.

    The same numbers; but the kernel's gradient then contracts one axis instead of several, for which XLA's CPU backend
    has its fast matrix product only in this form.
    """
    del dimension_numbers  # nn.Dense always contracts x's last axis with the kernel's first
    product = jnp.dot(x.reshape(-1, x.shape[-1]), kernel, precision=precision)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


def layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=jnp.float32, name=name)


def normalise_images(images: jax.Array) -> jax.Array:
    """uint8 [..., 3] in 0-255 -> float32 with ImageNet's mean and deviation taken out."""
    mean, std = jnp.array(IMAGENET_MEAN), jnp.array(IMAGENET_STD)
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def patchify(images_BxHxWx3: jax.Array, patch_size: int) -> jax.Array:
    """[B, H, W, 3] -> [B, N, patch_size * patch_size * 3]: patches row-major, within one (row, column, channel)."""
    B, height, width, channels = images_BxHxWx3.shape
    rows, columns = height // patch_size, width // patch_size
    x = images_BxHxWx3.reshape(B, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * columns, patch_size * patch_size * channels)


def gather_tokens(x_BxNxD: jax.Array, indices_BxK: jax.Array) -> jax.Array:
    """Each image's own rows: [B, N, D], int [B, K] -> [B, K, D]."""
    return jnp.take_along_axis(x_BxNxD, indices_BxK[..., None], axis=1)


def sincos_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine embedding of a (rows, columns) grid: float32 [rows * columns, width].

    The first half of the channels encodes the column, the second the row, each as [sines, cosines], computed in
    float64 (ijepa src/models/vision_transformer.py:22-82, whose variable names say the opposite).
    """
    if width % 4:
        raise ValueError(f"a 2-D sine-cosine embedding needs a width divisible by 4, not {width}")
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")

    def encode(position):
        angles = np.outer(position.ravel(), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encode(column), encode(row)], axis=1).astype(np.float32)


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of one sequence, with the fused qkv of the official weights."""

    heads: int
    linear: Linear

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, valid_BxL: jax.Array | None) -> jax.Array:
        B, L, D = x_BxLxD.shape
        qkv = self.linear(3 * D, "qkv")(x_BxLxD).reshape(B, L, 3, self.heads, D // self.heads)
        mask = None if valid_BxL is None else valid_BxL[:, None, None, :]
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask)
        return self.linear(D, "proj")(attended.reshape(B, L, D))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    hidden: int
    linear: Linear

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.gelu(self.linear(self.hidden, "fc1")(x), approximate=False)
        return self.linear(x.shape[-1], "fc2")(hidden)


class Block(nn.Module):
    """Pre-norm transformer block. Padded tokens (valid False) are never attended; their output means nothing."""

    heads: int
    hidden: int
    linear: Linear

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, valid_BxL: jax.Array | None = None) -> jax.Array:
        attention, mlp = SelfAttention(self.heads, self.linear, name="attn"), Mlp(self.hidden, self.linear, name="mlp")
        x = x_BxLxD + attention(layer_norm("norm1")(x_BxLxD), valid_BxL)
        return x + mlp(layer_norm("norm2")(x))
