"""Text encoders without a language model. All text encoders have one contract:

words and their validity, bool [B, C, S] -> word vectors, float32 [B, C, S, E], which are 0 for words that are not
valid. Words are ids, int [B, C, S], or vectors in the case of StoredWords.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers


class EmbeddingText(nn.Module):
    """Word and position embeddings that are trained with the predictor."""

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
