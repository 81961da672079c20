"""How the predictor reads the captions. One module per way, all with the signature of `Conditioner`.

A conditioner sees the predictor's input once (`begin`) and then wraps every one of its blocks (`layer`), so it may
change tokens, append some, or call a block its own way, and the predictor need not know which.
"""

from collections.abc import Callable

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers


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


Block = Callable[[Tokens], Tokens]


class Conditioner(nn.Module):
    """No words at all: I-JEPA. The other conditioners override what they need."""

    def begin(self, tokens: Tokens, words: Words) -> Tokens:
        """The predictor's input, before its first layer."""
        return tokens

    def layer(self, index: int, block: Block, tokens: Tokens, words: Words) -> tuple[Tokens, Reading | None]:
        """Layer `index` of the predictor, around its transformer block. The reading feeds the regularisers."""
        return block(tokens), None


class WordCrossAttention(Conditioner):
    """TC-JEPA's fine-grained conditioner (paper Sec. 3.2, Eq. 2): after every block, tokens attend to words."""

    depth: int
    linear: layers.Linear

    def setup(self):
        self.layers = [WordCrossAttentionLayer(self.linear) for _ in range(self.depth)]

    def layer(self, index: int, block: Block, tokens: Tokens, words: Words) -> tuple[Tokens, Reading | None]:
        tokens = block(tokens)
        values, reading = self.layers[index](tokens.values_BxMxLxP, words)
        return tokens.replace(values_BxMxLxP=values), reading


class WordCrossAttentionLayer(nn.Module):
    """Every token attends to the words of each caption apart; the captions' results are fused by an element-wise max.

    For caption c: h = q + softmax(W_Q LN(q) . W_K t_c / sqrt(P)) W_V t_c, then h = LN(h + MLP(h)), MLP of ratio 1.
    Keys and values are computed once per image, whatever the number of target blocks.
    """

    linear: layers.Linear

    @nn.compact
    def __call__(self, x_BxMxLxP: jax.Array, words: Words) -> tuple[jax.Array, Reading]:
        P = x_BxMxLxP.shape[-1]
        query = self.linear(P, "query", use_bias=False)(layers.layer_norm("norm_query")(x_BxMxLxP))
        key = self.linear(P, "key", use_bias=False)(words.vectors_BxCxSxE)
        value = self.linear(P, "value", use_bias=False)(words.vectors_BxCxSxE)

        products = jnp.einsum("bmlp,bcsp->bmlcs", query, key, preferred_element_type=jnp.float32)
        attention = masked_softmax(products / P**0.5, words.valid_BxCxS[:, None, None])
        read = jnp.einsum("bmlcs,bcsp->bmlcp", attention.astype(self.linear.dtype), value)

        h_BxMxLxCxP = x_BxMxLxP[..., None, :] + read
        h_BxMxLxCxP = h_BxMxLxCxP + layers.Mlp(P, self.linear, name="mlp")(h_BxMxLxCxP)
        fused = max_over_captions(layers.layer_norm("norm_output")(h_BxMxLxCxP), words.fused_BxC)
        lengths = inverse_norm(query)[..., None, None] * inverse_norm(key)[:, None, None]
        return fused, Reading(products * lengths, attention)


def masked_softmax(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """Softmax over the last axis among the valid entries; all zero, with finite gradients, where none is."""
    weights = jax.nn.softmax(jnp.where(valid, logits, -1e30), axis=-1)
    return jnp.where(valid, weights, 0.0)


def max_over_captions(h_BxMxLxCxP: jax.Array, fused_BxC: jax.Array) -> jax.Array:
    """Element-wise maximum over the captions to fuse, of which every image has at least one."""
    return jnp.where(fused_BxC[:, None, None, :, None], h_BxMxLxCxP, -jnp.inf).max(axis=-2)


def inverse_norm(x: jax.Array) -> jax.Array:
    """1 / ||x|| over the last axis, float32, finite at 0."""
    return jax.lax.rsqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1) + 1e-12)
