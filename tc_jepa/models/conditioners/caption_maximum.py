"""The maximum over captions of a function of each, with the result of one caption in memory at a time."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from tc_jepa.models.layers import Params

# of parameters, tokens [B, M, L, P] and what one caption brings (arrays without the axis C) -> [B, M, L, P]
OfCaption = Callable[[Params, jax.Array, Any], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def maximum_over_captions(
    function: OfCaption, params: Params, x_BxMxLxP: jax.Array, captions: Any, fused_BxC: jax.Array
) -> jax.Array:
    """Returns the element-wise maximum over the fused captions of function(params, x, caption): [B, M, L, P].

    `captions` is a tree of arrays with a leading axis C. `fused_BxC` marks the captions that count, at least one for
    each image. Captions are computed one after another, and again in the backward pass, so that no array has both
    axes C and P. Of several captions with the same maximum the first one gets the gradient.
    """
    return _running_maximum(function, params, x_BxMxLxP, captions, fused_BxC)[0]


def _running_maximum(function, params, x_BxMxLxP, captions, fused_BxC):
    """The maximum, and the number of the first caption that has it: uint8 [B, M, L, P]."""

    def step(carry, one):
        best, winner = carry
        number, caption, fused_B = one
        h = jnp.where(fused_B[:, None, None, None], function(params, x_BxMxLxP, caption), -jnp.inf)
        better = h > best
        return (jnp.where(better, h, best), jnp.where(better, number, winner)), None

    C = fused_BxC.shape[1]
    start = jnp.full_like(x_BxMxLxP, -jnp.inf), jnp.zeros(x_BxMxLxP.shape, jnp.uint8)
    (best, winner), _ = jax.lax.scan(step, start, (jnp.arange(C, dtype=jnp.uint8), captions, fused_BxC.T))
    return best, winner


def _forward(function, params, x_BxMxLxP, captions, fused_BxC):
    best, winner = _running_maximum(function, params, x_BxMxLxP, captions, fused_BxC)
    return best, (params, x_BxMxLxP, captions, winner)


def _backward(function, residuals, gradient_BxMxLxP):
    params, x_BxMxLxP, captions, winner = residuals

    def step(carry, one):
        number, caption = one
        _, pull_back = jax.vjp(function, params, x_BxMxLxP, caption)
        of_params, of_x, of_caption = pull_back(jnp.where(winner == number, gradient_BxMxLxP, 0.0))
        return jax.tree.map(jnp.add, carry, (of_params, of_x)), of_caption

    C = jax.tree.leaves(captions)[0].shape[0]
    start = jax.tree.map(jnp.zeros_like, (params, x_BxMxLxP))
    (of_params, of_x), of_captions = jax.lax.scan(step, start, (jnp.arange(C, dtype=jnp.uint8), captions))
    return of_params, of_x, of_captions, None


maximum_over_captions.defvjp(_forward, _backward)
