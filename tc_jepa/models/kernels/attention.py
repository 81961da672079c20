"""Multi-head attention of a sequence to itself, as XLA computes it. tpu_attention.py has the same for TPUs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

MASKED = -1e30  # the logit of a token that is not attended to

# of queries, keys and values, validity of tokens, and the number of heads: `attend`, or another program for it
Attend = Callable[[jax.Array, jax.Array | None, int], jax.Array]


def attend(qkv_BxLx3D: jax.Array, valid_BxL: jax.Array | None, heads: int) -> jax.Array:
    """Returns softmax(Q K^T / sqrt(channels of a head)) V of every head, side by side: [B, L, D].

    Queries, keys and values are those of the official weights, one after another in the last axis, each with the
    channels of its heads side by side. No token attends to one whose `valid_BxL` is False. Softmax is float32.

    The heads are moved to the front before the products: XLA's CPU backend has a fast product only for leading batches.
    """
    B, L, _ = qkv_BxLx3D.shape
    query, key, value = qkv_BxLx3D.reshape(B, L, 3, heads, -1).transpose(2, 0, 3, 1, 4)  # each [B, heads, L, channels]
    logits = jnp.einsum("bhtn,bhsn->bhts", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if valid_BxL is not None:
        logits = jnp.where(valid_BxL[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    attended = jnp.einsum("bhts,bhsn->bhtn", weights, value)
    return attended.transpose(0, 2, 1, 3).reshape(B, L, -1)
