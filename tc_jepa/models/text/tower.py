"""The text tower of contrastive methods: a transformer over the words of one caption, trained with the encoder."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers


class TextTower(nn.Module):
    """ids int [B, S], validity bool [B, S] -> features of words float32 [B, S, E], 0 for words that are not valid.

    A pre-norm transformer with learned positions, in which every word attends to all valid words. CLIP's attends to
    earlier words only; where the last word stands for the caption, both have read all of it. `width` is E, and the
    hidden width of the MLPs is 4 E. Valid ids must be below `vocabulary_size`: under jit a larger one silently reads
    the last row. `remat`: blocks are computed again for gradients.
    """

    vocabulary_size: int
    width: int
    depth: int
    heads: int
    words: int  # S at most
    linear: layers.Linear = layers.Linear()
    remat: bool = False

    @nn.compact
    def __call__(self, ids_BxS: jax.Array, valid_BxS: jax.Array) -> jax.Array:
        table = self.param("words", self.linear.init, (self.vocabulary_size, self.width))
        positions = self.param("positions", self.linear.init, (self.words, self.width))
        x_BxSxE = table[ids_BxS] + positions[: ids_BxS.shape[1]]
        block_of = layers.rematerialised(layers.Block, self.remat)
        for i in range(self.depth):
            x_BxSxE = block_of(i, self.heads, 4 * self.width, self.linear, name=f"blocks_{i}")(x_BxSxE, valid_BxS)
        return jnp.where(valid_BxS[..., None], layers.layer_norm("norm")(x_BxSxE), 0.0)
