"""The paper's conditioner: at every layer of the predictor, every token attends to the words of every caption."""

from collections.abc import Collection
import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers
from tc_jepa.models.conditioners import fusion
from tc_jepa.models.conditioners.base import Block, Conditioner, Reading, Tokens, Words


@dataclasses.dataclass(frozen=True)
class CrossAttentionForm:
    """What the paper leaves open or ablates; the defaults are our reading of it.

    heads: of the attention to words; the regularisers' cosine is that of whole queries and keys, whatever their number.
    scaled: products over sqrt(channels of a head). pre_norm: queries come from LayerNormed tokens.
    mlp_ratio: hidden width of the MLP over P. post_norm: h = LN(h + MLP(h)), else h + MLP(LN(h)), which leaves the
    predictor's residual stream whole. fuse_first: captions are fused before MLP and LayerNorm instead of after,
    which makes the MLP C times cheaper.
    """

    heads: int = 1
    scaled: bool = True
    pre_norm: bool = True
    mlp_ratio: float = 1.0
    post_norm: bool = True
    fuse_first: bool = False
    fusion: type[nn.Module] = fusion.MaxPool


class WordCrossAttention(Conditioner):
    """TC-JEPA's fine-grained conditioner (paper Sec. 3.2, Eq. 2), after the blocks of the layers in `at`."""

    attends_to_words: ClassVar[bool] = True

    at: Collection[int]
    linear: layers.Linear
    form: CrossAttentionForm = CrossAttentionForm()

    def setup(self):
        self.layers = {str(i): CrossAttentionLayer(self.linear, self.form) for i in self.at}

    def layer(self, index: int, block: Block, tokens: Tokens, words: Words) -> tuple[Tokens, Reading | None]:
        tokens = block(tokens)
        if index not in self.at:
            return tokens, None
        values, reading = self.layers[str(index)](tokens.values_BxMxLxP, words)
        return tokens.replace(values_BxMxLxP=values), reading


class CaptionCrossAttention(WordCrossAttention):
    """The same with a caption's mean word vector as its only word (paper Fig. 4); nothing to regularise.

    Softmax over one word is 1, so that queries and keys are idle and each token gets W_V of the mean.
    """

    attends_to_words: ClassVar[bool] = False

    def layer(self, index: int, block: Block, tokens: Tokens, words: Words) -> tuple[Tokens, Reading | None]:
        tokens, _ = super().layer(index, block, tokens, words.averaged())
        return tokens, None


class CrossAttentionLayer(nn.Module):
    """Every token attends to the words of each caption apart; then the captions' results are fused.

    For caption c: h = q + softmax(W_Q LN(q) . W_K t_c / sqrt(P)) W_V t_c, then h = LN(h + MLP(h)), then the maximum
    over c; other settings of `form` change a part of that. Keys and values are computed once per image, whatever the
    number of target blocks.
    """

    linear: layers.Linear
    form: CrossAttentionForm = CrossAttentionForm()

    @nn.compact
    def __call__(self, x_BxMxLxP: jax.Array, words: Words) -> tuple[jax.Array, Reading]:
        form, P = self.form, x_BxMxLxP.shape[-1]
        H = form.heads

        def split(x):
            return x.reshape(*x.shape[:-1], H, P // H)

        asking = layers.layer_norm("norm_query")(x_BxMxLxP) if form.pre_norm else x_BxMxLxP
        query = self.linear(P, "query", use_bias=False)(asking)
        key = self.linear(P, "key", use_bias=False)(words.vectors_BxCxSxE)
        value = self.linear(P, "value", use_bias=False)(words.vectors_BxCxSxE)

        products = jnp.einsum("bmlhp,bcshp->bhmlcs", split(query), split(key), preferred_element_type=jnp.float32)
        logits = products / (P // H) ** 0.5 if form.scaled else products
        attention = layers.masked_softmax(logits, words.valid_BxCxS[:, None, None, None])
        read = jnp.einsum("bhmlcs,bcshp->bmlchp", attention.astype(self.linear.dtype), split(value))

        h_BxMxLxCxP = x_BxMxLxP[..., None, :] + read.reshape(*read.shape[:-2], P)
        fuse = form.fusion(self.linear, name="fusion")
        mlp = layers.Mlp(round(form.mlp_ratio * P), P, self.linear, self.linear, name="mlp")
        norm = layers.layer_norm("norm_output")

        def digest(h):
            return norm(h + mlp(h)) if form.post_norm else h + mlp(norm(h))

        if form.fuse_first:
            fused = digest(fuse(h_BxMxLxCxP, words.fused_BxC))
        else:
            fused = fuse(digest(h_BxMxLxCxP), words.fused_BxC)
        lengths = inverse_norm(query)[..., None, None] * inverse_norm(key)[:, None, None]
        return fused, Reading(products.sum(axis=1) * lengths, attention.mean(axis=1))


def inverse_norm(x: jax.Array) -> jax.Array:
    """1 / ||x|| over the last axis, float32, finite at 0."""
    return jax.lax.rsqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1) + 1e-12)
