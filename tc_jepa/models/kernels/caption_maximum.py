"""The maximum over captions of a function of tokens and what they read in each, one caption in memory at a time.

This is XLA's program. tpu_caption_maximum.py has the same for TPUs.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

# of parameters and tokens [..., P] -> [..., P], each token by itself
TokenFunction = Callable[[Mapping[str, Any], jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def maximum_over_captions(
    function: TokenFunction,
    params: Mapping[str, Any],
    x_BxMxLxP: jax.Array,
    attention_BxHxMxLxCxS: jax.Array,
    values_BxCxSxP: jax.Array,
    fused_BxC: jax.Array,
) -> jax.Array:
    """Returns the element-wise maximum over captions of function(params, x + attention to a caption's values).

    The result is [B, M, L, P] with the dtype of x. The channels of the H heads are side by side in the values.
    `fused_BxC` marks the captions that count, at least one for each image. Captions are computed one after another, and
    again in the backward pass, so that no array has both axes C and P. Of several captions with the same maximum the
    first one gets the gradient.
    """
    return _running_maximum(function, params, x_BxMxLxP, attention_BxHxMxLxCxS, values_BxCxSxP, fused_BxC)[0]


def _of_caption(function, params, x_BxMxLxP, attention_BxHxMxLxS, values_BxSxP):
    H = attention_BxHxMxLxS.shape[1]
    values = values_BxSxP.reshape(*values_BxSxP.shape[:2], H, -1)
    read = jnp.einsum("bhmls,bshp->bmlhp", attention_BxHxMxLxS, values).reshape(x_BxMxLxP.shape)
    return function(params, x_BxMxLxP + read).astype(x_BxMxLxP.dtype)


def _by_caption(attention_BxHxMxLxCxS, values_BxCxSxP):
    return jnp.moveaxis(attention_BxHxMxLxCxS, -2, 0), jnp.moveaxis(values_BxCxSxP, 1, 0)


def _running_maximum(function, params, x_BxMxLxP, attention_BxHxMxLxCxS, values_BxCxSxP, fused_BxC):
    """The maximum, and the number of the first caption that has it: uint8 [B, M, L, P]."""

    def step(carry, one):
        best, winner = carry
        number, caption, fused_B = one
        h = jnp.where(fused_B[:, None, None, None], _of_caption(function, params, x_BxMxLxP, *caption), -jnp.inf)
        better = h > best
        return (jnp.where(better, h, best), jnp.where(better, number, winner)), None

    C = fused_BxC.shape[1]
    start = jnp.full_like(x_BxMxLxP, -jnp.inf), jnp.zeros(x_BxMxLxP.shape, jnp.uint8)
    captions = _by_caption(attention_BxHxMxLxCxS, values_BxCxSxP)
    (best, winner), _ = jax.lax.scan(step, start, (jnp.arange(C, dtype=jnp.uint8), captions, fused_BxC.T))
    return best, winner


def _forward(function, params, x_BxMxLxP, attention_BxHxMxLxCxS, values_BxCxSxP, fused_BxC):
    best, winner = _running_maximum(function, params, x_BxMxLxP, attention_BxHxMxLxCxS, values_BxCxSxP, fused_BxC)
    return best, (params, x_BxMxLxP, attention_BxHxMxLxCxS, values_BxCxSxP, winner)


def _backward(function, residuals, gradient_BxMxLxP):
    params, x_BxMxLxP, attention_BxHxMxLxCxS, values_BxCxSxP, winner = residuals
    of_caption = functools.partial(_of_caption, function)

    def step(carry, one):
        number, caption = one
        _, pull_back = jax.vjp(of_caption, params, x_BxMxLxP, *caption)
        of_params, of_x, *of_both = pull_back(jnp.where(winner == number, gradient_BxMxLxP, 0.0))
        return jax.tree.map(jnp.add, carry, (of_params, of_x)), of_both

    captions = _by_caption(attention_BxHxMxLxCxS, values_BxCxSxP)
    numbers = jnp.arange(values_BxCxSxP.shape[1], dtype=jnp.uint8)
    start = jax.tree.map(jnp.zeros_like, (params, x_BxMxLxP))
    (of_params, of_x), (of_attention, of_values) = jax.lax.scan(step, start, (numbers, captions))
    return of_params, of_x, jnp.moveaxis(of_attention, 0, -2), jnp.moveaxis(of_values, 0, 1), None


maximum_over_captions.defvjp(_forward, _backward)
