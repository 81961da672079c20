"""A matrix product that is summed in float32, as are those of its gradient. Kernels for TPUs know no other."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns x times a matrix: [..., K], [K, N] -> [..., N], in the dtype of x, which is also the matrix's.

    The matrix's gradient contracts one axis, all leading ones of `x` merged, and not several: only for that does XLA's
    CPU backend have a fast product.
    """
    return contracted(x, matrix, x.ndim - 1, 0).astype(x.dtype)


def contracted(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """Returns the sum over one axis of each of two arrays, in float32: the other axes of a, then those of b."""
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


def _backward(residuals, gradient):
    x, matrix = residuals
    of_x = contracted(gradient, matrix, x.ndim - 1, 1).astype(x.dtype)
    flat_x, flat_gradient = (array.reshape(-1, array.shape[-1]) for array in (x, gradient))
    return of_x, contracted(flat_x, flat_gradient, 0, 0).astype(matrix.dtype)


product.defvjp(lambda x, matrix: (product(x, matrix), (x, matrix)), _backward)
