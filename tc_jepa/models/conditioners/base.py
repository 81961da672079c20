"""How the predictor reads the captions: the contract of every conditioner, and the one that reads none.

A conditioner sees the predictor's input once (`begin`) and then wraps every one of its blocks (`layer`), so it may
change tokens, append some, or call a block its own way, and the predictor need not know which.
"""

from typing import ClassVar, Protocol

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models.layers import Modulation, UNMODULATED


@struct.dataclass
class Words:
    """Captions as word vectors. A word counts where it is valid in a valid caption."""

    vectors_BxCxSxE: jax.Array
    word_valid_BxCxS: jax.Array
    caption_valid_BxC: jax.Array

    @property
    def valid_BxCxS(self) -> jax.Array:
        return self.word_valid_BxCxS & self.caption_valid_BxC[..., None]

    @property
    def fused_BxC(self) -> jax.Array:
        """Captions whose results are fused. An image without captions has one null caption, with no valid word."""
        null = ~self.caption_valid_BxC.any(axis=-1, keepdims=True)
        first = jnp.arange(self.caption_valid_BxC.shape[-1]) == 0
        return self.caption_valid_BxC | (null & first)

    def averaged(self) -> "Words":
        """Each caption as one word, the mean of its valid word vectors: [B, C, 1, E], 0 where there is none."""
        valid = self.valid_BxCxS[..., None]
        total = jnp.where(valid, self.vectors_BxCxSxE, 0.0).sum(axis=2, keepdims=True)
        mean = total / jnp.maximum(valid.sum(axis=2, keepdims=True), 1)
        return Words(mean, self.word_valid_BxCxS.any(axis=-1, keepdims=True), self.caption_valid_BxC)


@struct.dataclass
class Tokens:
    """The predictor's sequences, one per target block: context, targets, then whatever a conditioner appended."""

    values_BxMxLxP: jax.Array
    valid_BxMxL: jax.Array


@struct.dataclass
class Reading:
    """What one layer's tokens read: cosine of query and key, and attention weight, of each token and word."""

    cosine_BxMxLxCxS: jax.Array
    attention_BxMxLxCxS: jax.Array


class Block(Protocol):
    """One of the predictor's transformer blocks, over all sequences; `modulation` has arrays [B, M, 1, P]."""

    def __call__(self, tokens: Tokens, modulation: Modulation = UNMODULATED) -> Tokens: ...


class Conditioner(nn.Module):
    """No words at all: I-JEPA. `words` may be None. The other conditioners override what they need."""

    attends_to_words: ClassVar[bool] = False  # whether `layer` returns a Reading

    def begin(self, tokens: Tokens, words: Words | None) -> Tokens:
        """The predictor's input, before its first layer."""
        return tokens

    def layer(self, index: int, block: Block, tokens: Tokens, words: Words | None) -> tuple[Tokens, Reading | None]:
        """Layer `index` of the predictor, around its transformer block. The reading feeds the regularisers."""
        return block(tokens), None
