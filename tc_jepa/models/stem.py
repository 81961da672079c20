"""The first layers of a ViT, from the pixels of each patch to a token."""

import flax.linen as nn
import jax

from tc_jepa.models.layers import Linear

STEMS = ("linear", "conv")
CONVOLUTIONS = 2


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2, each with a GELU, and a linear layer: [B, N, p * p * 3] -> [B, N, width].

    As in "Early convolutions help transformers see better" (arXiv 2106.14881), but within each patch, whose border is
    padded with zeros: a token depends on the pixels of its own patch alone, so that hidden patches stay hidden.
    Patches are as layers.patchify returns them. Initial kernels are LeCun normal.
    """

    patch_size: int
    width: int
    linear: Linear

    @nn.compact
    def __call__(self, patches_BxNxI: jax.Array) -> jax.Array:
        B, N, _ = patches_BxNxI.shape
        x = patches_BxNxI.reshape(B * N, self.patch_size, self.patch_size, 3)
        for i in range(CONVOLUTIONS):
            channels = self.width // 2 ** (CONVOLUTIONS - i)
            x = nn.gelu(nn.Conv(channels, (3, 3), strides=2, dtype=self.linear.dtype, name=f"conv_{i}")(x))
        x = x.reshape(B, N, -1)
        return self.linear.scaled(x.shape[-1])(self.width, "proj")(x)
