"""Fusion of the results of several captions into one (paper Table 6).

All fusions have one signature: h [B, M, L, C, P], bool [B, C] -> [B, M, L, P]. The mask marks the captions that are
fused; every image has at least one (base.Words.fused_BxC).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.models import layers


class MaxPool(nn.Module):
    """Element-wise maximum over captions, the paper's default."""

    linear: layers.Linear

    def __call__(self, h_BxMxLxCxP: jax.Array, fused_BxC: jax.Array) -> jax.Array:
        return jnp.where(fused_BxC[:, None, None, :, None], h_BxMxLxCxP, -jnp.inf).max(axis=-2)


class MeanPool(nn.Module):
    """Mean over captions."""

    linear: layers.Linear

    def __call__(self, h_BxMxLxCxP: jax.Array, fused_BxC: jax.Array) -> jax.Array:
        weights = fused_BxC / fused_BxC.sum(axis=-1, keepdims=True)
        return jnp.einsum("bmlcp,bc->bmlp", h_BxMxLxCxP, weights)


class AttentionPool(nn.Module):
    """Weighted mean over captions. The weights are the softmax of (query . W_K h_c) / sqrt(P), with a learned query.

    The paper names attention pooling but does not say how it is computed.
    """

    linear: layers.Linear

    @nn.compact
    def __call__(self, h_BxMxLxCxP: jax.Array, fused_BxC: jax.Array) -> jax.Array:
        P = h_BxMxLxCxP.shape[-1]
        query = self.param("query", self.linear.init, (P,))
        key = self.linear(P, "key", use_bias=False)(h_BxMxLxCxP)
        scores = key.astype(jnp.float32) @ query / P**0.5
        weights = jax.nn.softmax(jnp.where(fused_BxC[:, None, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("bmlcp,bmlc->bmlp", h_BxMxLxCxP, weights)


FUSIONS = {"max": MaxPool, "mean": MeanPool, "attention": AttentionPool}
# Weight-decay rules of a conditioner that fuses by modules called fusion or fusion_0, fusion_1, ...
FUSION_RULES = ((r"(.*/)?fusion(_\d+)?/query", True),)
