"""The conditioner "word_cross_attention", the paper's own: every token attends to the words of every caption."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models.conditioners.base import BlockFunction, Conditioner, Reading, Tokens, Words
from tc_jepa.models.conditioners.fusion import FUSION_RULES, FUSIONS
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.layers import layer_norm, Linear, masked_softmax, Mlp, Params, rematerialised


@dataclasses.dataclass(frozen=True)
class CrossAttentionForm:
    """Choices that the paper leaves open or ablates. The defaults are our reading of it.

    heads: of the attention to words. The regularisers' cosine is always that of whole queries and keys.
    scaled: divide products by sqrt(channels of a head).
    pre_norm: compute queries from LayerNormed tokens.
    mlp_ratio: hidden width of the MLP, divided by P.
    post_norm: h = LN(h + MLP(h)); else h + MLP(LN(h)), which does not normalise the predictor's residual stream.
    fuse_first: fuse captions before MLP and LayerNorm instead of after, which makes the MLP C times cheaper.
    fusion: a name in fusion.FUSIONS.
    """

    heads: int = 1
    scaled: bool = True
    pre_norm: bool = True
    mlp_ratio: float = 1.0
    post_norm: bool = True
    fuse_first: bool = False
    fusion: str = "max"


class WordCrossAttention(Conditioner):
    """TC-JEPA's fine-grained conditioner (paper Sec. 3.2, Eq. 2), a CrossAttentionLayer after transformer blocks.

    `layers` are the 0-based indices of the predictor's layers that have one; empty: all.
    """

    keys = ("layers", *(field.name for field in dataclasses.fields(CrossAttentionForm)))
    weight_decay_rules = FUSION_RULES
    reads_words = True
    attends_to_words = True

    layers: tuple[int, ...] = ()
    form: CrossAttentionForm = CrossAttentionForm()

    @classmethod
    def build(cls, linear: Linear, remat: bool, settings: Mapping[str, Any]) -> Conditioner:
        form = {name: value for name, value in settings.items() if name != "layers"}
        return cls(linear, remat, layers=settings["layers"], form=CrossAttentionForm(**form))

    @nn.compact
    def condition_layer(
        self, index: int, block: BlockFunction, tokens: Tokens, words: Words
    ) -> tuple[Tokens, Reading | None]:
        tokens = block(tokens)
        if self.layers and index not in self.layers:
            return tokens, None
        layer_of = rematerialised(CrossAttentionLayer, self.remat)
        layer = layer_of(self.linear, self.form, self.backend, name=f"layers_{index}")
        values, reading = layer(tokens.values_BxMxLxP, words)
        return tokens.replace(values_BxMxLxP=values), reading


class CrossAttentionLayer(nn.Module):
    """Every token attends to the words of each caption separately; then the results are fused over captions.

    For caption c: h = q + softmax(W_Q LN(q) . W_K t_c / sqrt(P)) W_V t_c, then h = LN(h + MLP(h)), then the maximum
    over c. `form` changes parts of this. Keys and values are computed once per image, not once per target block.
    Returns the new tokens [B, M, L, P] and their Reading.
    """

    linear: Linear
    form: CrossAttentionForm = CrossAttentionForm()
    backend: Backend = PLAIN

    @nn.compact
    def __call__(self, x_BxMxLxP: jax.Array, words: Words) -> tuple[jax.Array, Reading]:
        form, P = self.form, x_BxMxLxP.shape[-1]
        H = form.heads

        def split(x):
            return x.reshape(*x.shape[:-1], H, P // H)

        normed = layer_norm("norm_query")(x_BxMxLxP) if form.pre_norm else x_BxMxLxP
        query = self.linear(P, "query", use_bias=False)(normed)
        key = self.linear(P, "key", use_bias=False)(words.vectors_BxCxSxE)
        value = self.linear(P, "value", use_bias=False)(words.vectors_BxCxSxE)

        products = jnp.einsum("bmlhp,bcshp->bhmlcs", split(query), split(key), preferred_element_type=jnp.float32)
        logits = products / (P // H) ** 0.5 if form.scaled else products
        attention = masked_softmax(logits, words.valid_BxCxS[:, None, None, None])
        weights, values = attention.astype(self.linear.dtype), split(value)

        mlp = Mlp(round(form.mlp_ratio * P), P, self.linear, self.linear, name="mlp")
        norm = layer_norm("norm_output")
        transform = functools.partial(feed_forward, form, mlp, norm)
        if form.fusion == "max" and not self.is_initializing():
            params = {} if form.fuse_first else {"mlp": mlp.variables["params"], "norm": norm.variables["params"]}
            function = functools.partial(_fused_function, form, mlp.clone(parent=None), norm.clone(parent=None))
            fused = self.backend.maximum_over_captions(function, params, x_BxMxLxP, weights, value, words.fused_BxC)
        else:
            attended = jnp.einsum("bhmlcs,bcshp->bmlchp", weights, values)
            h_BxMxLxCxP = x_BxMxLxP[..., None, :] + attended.reshape(*attended.shape[:-2], P)
            fuse = FUSIONS[form.fusion](self.linear, name="fusion")
            fused = fuse(h_BxMxLxCxP if form.fuse_first else transform(h_BxMxLxCxP), words.fused_BxC)
        fused = transform(fused) if form.fuse_first else fused
        lengths = inverse_norm(query)[..., None, None] * inverse_norm(key)[:, None, None]
        return fused, Reading(products.sum(axis=1) * lengths, attention.mean(axis=1))


def feed_forward(form: CrossAttentionForm, mlp: Callable, norm: Callable, h: jax.Array) -> jax.Array:
    """The MLP and the LayerNorm after attention."""
    return norm(h + mlp(h)) if form.post_norm else h + mlp(norm(h))


def _fused_function(form: CrossAttentionForm, mlp: Mlp, norm: nn.LayerNorm, params: Params, h: jax.Array) -> jax.Array:
    """What is fused, of tokens that have read a caption: a caption_maximum.TokenFunction."""
    if form.fuse_first:
        return h
    apply_mlp, apply_norm = (
        functools.partial(module.apply, {"params": params[name]}) for name, module in (("mlp", mlp), ("norm", norm))
    )
    return feed_forward(form, apply_mlp, apply_norm, h)


def inverse_norm(x: jax.Array) -> jax.Array:
    """1 / ||x|| over the last axis, float32, finite at 0."""
    return jax.lax.rsqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1) + 1e-12)
