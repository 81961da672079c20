"""Multi-head attention of a sequence to itself, as XLA computes it. tpu_attention.py has the same for TPUs."""

from collections.abc import Callable

import jax

# of queries, keys and values, validity of tokens, and the number of heads: `attend`, or another program for it
Attend = Callable[[jax.Array, jax.Array | None, int], jax.Array]


def attend(qkv_BxLx3D: jax.Array, valid_BxL: jax.Array | None, heads: int) -> jax.Array:
    """Returns softmax(Q K^T / sqrt(channels of a head)) V of every head, side by side: [B, L, D].

    Queries, keys and values are those of the official weights, one after another in the last axis, each with the
    channels of its heads side by side. No token attends to one whose `valid_BxL` is False. Softmax is float32.
    """
    B, L, _ = qkv_BxLx3D.shape
    qkv = qkv_BxLx3D.reshape(B, L, 3, heads, -1)
    mask = None if valid_BxL is None else valid_BxL[:, None, None, :]
    attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask)
    return attended.reshape(B, L, -1)
