"""Text encoders. One contract: words and their validity, bool [B, C, S] -> word vectors, float32 [B, C, S, E].

Words are ids, int [B, C, S], or for StoredWords vectors. Vectors of words that are not valid are zero.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers


class EmbeddingText(nn.Module):
    """Learned word and position embeddings, trained by the prediction loss: for runs without a language model."""

    vocabulary_size: int
    width: int
    words: int
    std: float = layers.OFFICIAL_STD

    @nn.compact
    def __call__(self, ids_BxCxS: jax.Array, valid_BxCxS: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.std)
        table = self.param("words", init, (self.vocabulary_size, self.width))
        positions = self.param("positions", init, (self.words, self.width))
        vectors = layers.layer_norm("norm")(table[ids_BxCxS] + positions)
        return jnp.where(valid_BxCxS[..., None], vectors, 0.0)


class StoredWords(nn.Module):
    """Vectors that a text encoder computed before the run, [B, C, S, E] of any floating type. Has no parameters."""

    @nn.compact
    def __call__(self, vectors_BxCxSxE: jax.Array, valid_BxCxS: jax.Array) -> jax.Array:
        return jnp.where(valid_BxCxS[..., None], vectors_BxCxSxE.astype(jnp.float32), 0.0)
