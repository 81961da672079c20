"""attention.attend as a kernel for TPUs (Pallas), for sequences so short that a whole one fits into vector memory.

XLA's program writes the products of queries and keys, [B, heads, L, L], to memory, and copies queries, keys and values
into a layout with the heads apart. The kernel does neither: it reads a sequence's [L, 3 D] and computes one head after
another. The backward pass computes the attention again. JAX's own kernel, splash attention, wants lengths that 128
divides, and the heads apart.
"""

from collections.abc import Iterator
import dataclasses
import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from tc_jepa.models.kernels.attention import MASKED
from tc_jepa.models.kernels.backend import OnEachDevice
from tc_jepa.models.kernels.product import contracted

VECTOR_MEMORY = 64 * 2**20  # bytes that a kernel may use: half of what a core of v5e, v5p and v6e has


@dataclasses.dataclass(frozen=True)
class Attend:
    """Computes what attention.attend does."""

    on_each_device: OnEachDevice
    interpret: bool = False

    def __call__(self, qkv_BxLx3D: jax.Array, valid_BxL: jax.Array | None, heads: int) -> jax.Array:
        B, L, _ = qkv_BxLx3D.shape
        bias = jnp.zeros((B, L)) if valid_BxL is None else jnp.where(valid_BxL, 0.0, MASKED)
        function = functools.partial(_attend, heads, self.interpret)
        return self.on_each_device(lambda _, *rows: function(*rows), (), qkv_BxLx3D, bias[:, None])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(heads: int, interpret: bool, qkv_BxLx3D: jax.Array, bias_Bx1xL: jax.Array) -> jax.Array:
    D = qkv_BxLx3D.shape[-1] // 3
    return _call(_forward_kernel, heads, interpret, D, 2, qkv_BxLx3D, bias_Bx1xL)


def _forward(heads, interpret, qkv_BxLx3D, bias_Bx1xL):
    return _attend(heads, interpret, qkv_BxLx3D, bias_Bx1xL), (qkv_BxLx3D, bias_Bx1xL)


def _backward(heads, interpret, residuals, gradient_BxLxD):
    qkv_BxLx3D, bias_Bx1xL = residuals
    width = qkv_BxLx3D.shape[-1]
    return _call(_backward_kernel, heads, interpret, width, 5, qkv_BxLx3D, bias_Bx1xL, gradient_BxLxD), None


_attend.defvjp(_forward, _backward)


def _call(kernel, heads: int, interpret: bool, width: int, products: int, *arrays: jax.Array) -> jax.Array:
    """Runs a kernel on one sequence after another: [B, L, width]. `products` of size L x L x D are for the estimate."""
    B, L, width3 = arrays[0].shape
    result = jax.ShapeDtypeStruct((B, L, width), arrays[0].dtype)
    return pl.pallas_call(
        functools.partial(kernel, heads),
        grid=(B,),
        in_specs=[_one(x) for x in arrays],
        out_specs=_one(result),
        out_shape=result,
        interpret=interpret,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",), vmem_limit_bytes=VECTOR_MEMORY),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * B * L * L * (width3 // 3),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, result)),
            transcendentals=B * heads * L * L,
        ),
    )(*arrays)


def _one(x) -> pl.BlockSpec:
    """All of one row of an array with three axes."""
    return pl.BlockSpec((1, *x.shape[1:]), lambda b: (b, 0, 0))


def _forward_kernel(heads, qkv_ref, bias_ref, result_ref):
    for own, (query, key, value) in _heads(heads, qkv_ref):
        weights = _weights(query, key, bias_ref[0]).astype(value.dtype)
        result_ref[0, :, own] = contracted(weights, value, 1, 0).astype(result_ref.dtype)


def _backward_kernel(heads, qkv_ref, bias_ref, gradient_ref, result_ref):
    D = gradient_ref.shape[-1]
    for own, (query, key, value) in _heads(heads, qkv_ref):
        gradient = gradient_ref[0, :, own]
        weights = _weights(query, key, bias_ref[0])
        of_weights = contracted(gradient, value, 1, 1)
        of_logits = weights * (of_weights - (weights * of_weights).sum(axis=-1, keepdims=True))
        of_products = (of_logits * query.shape[-1] ** -0.5).astype(query.dtype)
        of_query, of_key = contracted(of_products, key, 1, 0), contracted(of_products, query, 0, 0)
        of_value = contracted(weights.astype(gradient.dtype), gradient, 0, 0)
        for part, found in enumerate((of_query, of_key, of_value)):
            result_ref[0, :, slice(part * D + own.start, part * D + own.stop)] = found.astype(result_ref.dtype)


def _heads(heads: int, qkv_ref) -> Iterator[tuple[slice, list[jax.Array]]]:
    """For each head: its channels among D, and its query, key and value [L, D / heads]."""
    D = qkv_ref.shape[-1] // 3
    size = D // heads
    for start in range(0, D, size):
        parts = [qkv_ref[0, :, part * D + start : part * D + start + size] for part in range(3)]
        yield slice(start, start + size), parts


def _weights(query_LxN: jax.Array, key_LxN: jax.Array, bias_1xL: jax.Array) -> jax.Array:
    """float32 [L, L]"""
    logits = contracted(query_LxN, key_LxN, 1, 1) * query_LxN.shape[-1] ** -0.5 + bias_1xL
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
