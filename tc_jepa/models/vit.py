"""The vision encoder: a ViT without a class token that can read a part of the patches."""

from collections.abc import Sequence
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.models import layers
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.positions import resized_positions, sincos_positions
from tc_jepa.models.stem import ConvStem


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a ViT: width and hidden width of the MLPs in channels, depth in blocks."""

    width: int
    depth: int
    heads: int
    hidden: int


# All but nano as in ijepa src/models/vision_transformer.py:451-490; nano is ours, for two CPU cores.
SIZES = {
    "nano": Size(128, 4, 4, 512),
    "tiny": Size(192, 12, 3, 768),
    "small": Size(384, 12, 6, 1536),
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "huge": Size(1280, 32, 16, 5120),
    "giant": Size(1408, 40, 16, 6144),
}
STORED, UNNORMALISED = "intermediates", "unnormalised"


class VisionTransformer(nn.Module):
    """Images, normalised float [B, H, W, 3] with H and W divisible by `patch_size` -> features float32 [B, N, D].

    With `indices` int [B, K] the result is [B, K, D] and depends on the pixels of those patches alone. `valid` bool
    [B, K] marks the indices that are not padding.
    `trained_grid` (rows, columns) is the patch grid that the encoder was trained on: on another grid, positions are
    interpolated from it (resized_positions). Without it every grid has its own exact positions. With
    `stored_positions`, positions are not computed but a parameter, `positions` [N of trained_grid, D]: for weights of
    other projects, never trained here.
    `backend` lays the residual stream over devices before and after every block, and computes attention.
    `remat`: keep the input of each block only for the backward pass, and compute the block again there.
    `residual`: dtype of the residual stream.
    `stem` is one of stem.STEMS: from the pixels of a patch to its token. `patch_fan_in`: the initial kernel of the
    linear one has std 1 / sqrt(3 patch_size^2), not that of `linear`.
    `scan`: loop over the blocks, so that one block is compiled. Parameters keep their names.
    Applied with mutable=[STORED], it stores the features before the last LayerNorm there as UNNORMALISED, [B, K, D].
    Raises ValueError for images that are not divisible into patches.
    """

    size: Size
    patch_size: int
    linear: layers.Linear = layers.Linear()
    trained_grid: tuple[int, int] | None = None
    stored_positions: bool = False
    remat: bool = False
    scan: bool = False
    residual: jnp.dtype = jnp.float32
    stem: str = "linear"
    patch_fan_in: bool = False
    backend: Backend = PLAIN

    @nn.compact
    def __call__(
        self, images_BxHxWx3: jax.Array, indices_BxK: jax.Array | None = None, valid_BxK: jax.Array | None = None
    ) -> jax.Array:
        B, height, width, _ = images_BxHxWx3.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image size {height} x {width} is not divisible by the patch size {self.patch_size}")
        grid = (height // self.patch_size, width // self.patch_size)
        patches = layers.patchify(images_BxHxWx3, self.patch_size)
        known = self.trained_grid or grid
        positions = jnp.asarray(resized_positions(self._positions(known), known, grid))
        if indices_BxK is not None:
            patches = layers.gather_tokens(patches, indices_BxK)
            positions = positions[indices_BxK]
        x = (self._tokens(patches) + positions).astype(self.residual)
        block_of = layers.rematerialised(layers.Block, self.remat)
        sizes = self.size.heads, self.size.hidden, self.linear, self.backend.attend
        blocks = [block_of(i, *sizes, name=f"blocks_{i}") for i in range(self.size.depth)]
        if self.scan and not self.is_initializing():
            x = self._scanned(blocks, x, valid_BxK)
        else:
            for block in blocks:
                x = self.backend.constrain(block(self.backend.constrain(x), valid_BxK))
        self.sow(STORED, UNNORMALISED, x)
        return layers.layer_norm("norm")(x)

    def _tokens(self, patches_BxNxI: jax.Array) -> jax.Array:
        if self.stem == "conv":
            return ConvStem(self.patch_size, self.size.width, self.linear, name="stem")(patches_BxNxI)
        linear = self.linear.scaled(patches_BxNxI.shape[-1]) if self.patch_fan_in else self.linear
        return linear(self.size.width, "patch_embed")(patches_BxNxI)

    def _scanned(self, blocks: Sequence[layers.Block], x_BxLxD: jax.Array, valid_BxL: jax.Array | None) -> jax.Array:
        """The blocks as a loop over their stacked parameters."""
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(block.variables["params"] for block in blocks))
        block = blocks[0].clone(parent=None)

        def step(x, params):
            return self.backend.constrain(block.apply({"params": params}, self.backend.constrain(x), valid_BxL)), None

        return jax.lax.scan(step, x_BxLxD, stacked)[0]

    def _positions(self, grid: tuple[int, int]) -> jax.Array | np.ndarray:
        """[rows * columns, D]"""
        if not self.stored_positions:
            return sincos_positions(grid, self.size.width)
        if self.trained_grid is None:
            raise ValueError("stored_positions needs trained_grid, the grid that they belong to")
        init = nn.initializers.normal(layers.OFFICIAL_STD)
        return self.param("positions", init, (grid[0] * grid[1], self.size.width))
