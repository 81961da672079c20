"""The projector: an MLP between pooled features and the loss. It is not used after training."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers

BATCH_NORM_EPSILON = 1e-5  # torch's


class Projector(nn.Module):
    """Features [..., D] -> projections float32 [..., output_width].

    `depth` times Linear to `width` channels, batch normalisation and ReLU, then a Linear: torchvision's MLP with
    BatchNorm1d, as in lejepa MINIMAL.md, without the biases, which batch normalisation cancels.
    """

    width: int
    depth: int
    output_width: int
    linear: layers.Linear = layers.Linear()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.depth):
            x = self.linear(self.width, f"fc_{i}", use_bias=False)(x)
            x = nn.relu(batch_norm(f"norm_{i}", tuple(range(x.ndim - 1)))(x))
        # In float32 like the loss: bfloat16 would round each projection to 8 significant bits.
        project = dataclasses.replace(self.linear, dtype=jnp.float32)
        return project(self.output_width, "output")(x)


def batch_norm(name: str, axes: tuple[int, ...]) -> nn.LayerNorm:
    """Batch normalisation of each channel (the last axis) over `axes`, in float32, with scale and bias.

    It has no running statistics and always uses those of the batch. Under jit that is the global batch.
    """
    return nn.LayerNorm(
        epsilon=BATCH_NORM_EPSILON,
        dtype=jnp.float32,
        reduction_axes=axes,
        feature_axes=-1,
        use_fast_variance=False,
        name=name,
    )
