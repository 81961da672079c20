"""caption_maximum.maximum_over_captions as a kernel for TPUs (Pallas).

XLA's program goes through memory with the best result so far once for every caption. The kernel takes the tokens of one
sequence at a time into vector memory, where it computes all captions. Its backward pass differentiates the function
inside of the kernel.
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from tc_jepa.models.kernels.backend import OnEachDevice
from tc_jepa.models.kernels.caption_maximum import TokenFunction
from tc_jepa.models.kernels.product import product
from tc_jepa.models.kernels.tpu_attention import VECTOR_MEMORY


@dataclasses.dataclass(frozen=True)
class MaximumOverCaptions:
    """Computes what caption_maximum.maximum_over_captions does."""

    on_each_device: OnEachDevice
    interpret: bool = False

    def __call__(
        self, function: TokenFunction, params, x_BxMxLxP, attention_BxHxMxLxCxS, values_BxCxSxP, fused_BxC
    ) -> jax.Array:
        B, H, M, L, C, S = attention_BxHxMxLxCxS.shape
        attention = attention_BxHxMxLxCxS.transpose(0, 2, 3, 4, 1, 5).reshape(B, M, L, C * H * S)
        fused = fused_BxC.astype(jnp.int32)[:, None]
        local = functools.partial(_maximum, Form(function, H, C, S, self.interpret))
        values = values_BxCxSxP.reshape(B, C * S, -1)
        return self.on_each_device(local, params, x_BxMxLxP, attention, values, fused)


@dataclasses.dataclass(frozen=True)
class Form:
    """What a kernel is made for."""

    function: TokenFunction
    heads: int
    captions: int
    words: int
    interpret: bool

    def of_caption(self, params, x_LxP, attention_LxHS, values_SxP):
        """The function of the tokens and what they read in one caption: [L, P] with the dtype of x."""
        size, S = x_LxP.shape[-1] // self.heads, self.words
        read = [
            product(attention_LxHS[:, h * S : (h + 1) * S], values_SxP[:, h * size : (h + 1) * size])
            for h in range(self.heads)
        ]
        read = read[0] if self.heads == 1 else jnp.concatenate(read, axis=-1)
        return self.function(params, x_LxP + read).astype(x_LxP.dtype)

    def parts(self, caption: int) -> tuple[slice, slice]:
        """Where a caption is in the last axis of the attention, and in the first one of the values."""
        HS, S = self.heads * self.words, self.words
        return slice(caption * HS, (caption + 1) * HS), slice(caption * S, (caption + 1) * S)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _maximum(form, params, x, attention, values, fused):
    return _run_forward(form, params, x, attention, values, fused)[0]


def _forward(form, params, x, attention, values, fused):
    best, winner = _run_forward(form, params, x, attention, values, fused)
    return best, (params, x, attention, values, winner)


def _run_forward(form, params, x, attention, values, fused):
    """The maximum, and the number of the first caption that has it: int8 [B, M, L, P]."""
    leaves, structure = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf in leaves]
    result = x, jax.ShapeDtypeStruct(x.shape, jnp.int8)
    return _call(
        functools.partial(_forward_kernel, form, functools.partial(_params, structure, shapes)),
        form,
        inputs=[(x, _sequence), (attention, _sequence), (values, _image), (fused, _scalars)],
        leaves=leaves,
        outputs=[(one, _sequence) for one in result],
        rounds=1,
    )


def _backward(form, residuals, gradient):
    params, x, attention, values, winner = residuals
    leaves, structure = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf in leaves]
    sums = [jax.ShapeDtypeStruct((_splits(x), *_matrix(leaf)), jnp.float32) for leaf in leaves]
    of_values = jax.ShapeDtypeStruct(values.shape, jnp.float32)
    of_x, of_attention, of_values, *of_leaves = _call(
        functools.partial(_backward_kernel, form, functools.partial(_params, structure, shapes), len(leaves)),
        form,
        inputs=[(x, _sequence), (attention, _sequence), (values, _image), (winner, _sequence), (gradient, _sequence)],
        leaves=leaves,
        outputs=[(x, _sequence), (attention, _sequence), (of_values, _image), *((one, _split) for one in sums)],
        rounds=3,
    )
    of_leaves = [found.sum(axis=0).reshape(leaf.shape).astype(leaf.dtype) for found, leaf in zip(of_leaves, leaves)]
    of_params = jax.tree.unflatten(structure, of_leaves)
    return of_params, of_x, of_attention, of_values.astype(values.dtype), None


_maximum.defvjp(_forward, _backward)


def _forward_kernel(form, make_params, x_ref, attention_ref, values_ref, fused_ref, *refs):
    *leaf_refs, best_ref, winner_ref = refs
    params = make_params(leaf_refs)
    x = x_ref[0, 0]
    best, winner = jnp.full(x.shape, -jnp.inf, jnp.float32), jnp.zeros(x.shape, jnp.int32)
    for c in range(form.captions):
        own, words = form.parts(c)
        found = form.of_caption(params, x, attention_ref[0, 0, :, own], values_ref[0, words])
        found = jnp.where(fused_ref[0, 0, c] > 0, found.astype(jnp.float32), -jnp.inf)
        better = found > best
        best, winner = jnp.where(better, found, best), jnp.where(better, c, winner)
    best_ref[0, 0] = best.astype(best_ref.dtype)
    winner_ref[0, 0] = winner.astype(winner_ref.dtype)


def _backward_kernel(form, make_params, count, x_ref, attention_ref, values_ref, winner_ref, gradient_ref, *refs):
    """Gradients of values are summed over the sequences of an image, those of parameters over a split's images."""
    leaf_refs, (of_x_ref, of_attention_ref, of_values_ref, *sum_refs) = refs[:count], refs[count:]
    first_sequence = pl.program_id(2) == 0

    @pl.when(first_sequence & (pl.program_id(1) == 0))
    def _():
        for ref in sum_refs:
            ref[...] = jnp.zeros_like(ref)

    @pl.when(first_sequence)
    def _():
        of_values_ref[...] = jnp.zeros_like(of_values_ref)

    params = make_params(leaf_refs)
    x, winner, gradient = x_ref[0, 0], winner_ref[0, 0].astype(jnp.int32), gradient_ref[0, 0].astype(jnp.float32)
    of_x = jnp.zeros(x.shape, jnp.float32)
    for c in range(form.captions):
        own, words = form.parts(c)
        arguments = params, x, attention_ref[0, 0, :, own], values_ref[0, words]
        _, pull_back = jax.vjp(form.of_caption, *arguments)
        of_params, found, of_attention, of_values = pull_back(jnp.where(winner == c, gradient, 0.0).astype(x.dtype))
        of_x = of_x + found.astype(jnp.float32)
        of_attention_ref[0, 0, :, own] = of_attention.astype(of_attention_ref.dtype)
        of_values_ref[0, words] = of_values_ref[0, words] + of_values.astype(jnp.float32)
        for ref, leaf in zip(sum_refs, jax.tree.leaves(of_params)):
            ref[0] = ref[0] + leaf.reshape(ref.shape[1:]).astype(jnp.float32)
    of_x_ref[0, 0] = of_x.astype(of_x_ref.dtype)


def _params(structure, shapes, refs):
    """The parameters in their own shapes. The kernel gets vectors as matrices with one row."""
    return jax.tree.unflatten(structure, [ref[...].reshape(shape) for ref, shape in zip(refs, shapes)])


def _call(kernel, form: Form, inputs: Sequence, leaves: Sequence[jax.Array], outputs: Sequence, rounds: int):
    """Runs a kernel on one sequence after another. `rounds` of the function's products are for the estimate."""
    (x, _), (attention, _), *_ = inputs
    B, M, L, P = x.shape
    splits = _splits(x)
    whole = [(leaf.reshape(_matrix(leaf)), _whole) for leaf in leaves]
    arrays = [array for array, _ in (*inputs, *whole)]
    results = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one, _ in outputs]
    products = sum(leaf.size for leaf in leaves if leaf.ndim > 1) + form.words * P
    return pl.pallas_call(
        kernel,
        grid=(splits, B // splits, M),
        in_specs=[spec(array, B // splits) for array, spec in (*inputs, *whole)],
        out_specs=[spec(array, B // splits) for array, spec in outputs],
        out_shape=results,
        interpret=form.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VECTOR_MEMORY
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * rounds * B * M * L * form.captions * products,
            bytes_accessed=sum(math.prod(one.shape) * one.dtype.itemsize for one in (*arrays, *results)),
            transcendentals=B * M * L * form.captions * P,
        ),
    )(*arrays)


def _splits(x: jax.Array) -> int:
    """The number of parts of the images that may be computed at the same time: a v5p has two cores."""
    return 2 if len(x) % 2 == 0 else 1


def _matrix(leaf: jax.Array) -> tuple[int, int]:
    return leaf.shape if leaf.ndim == 2 else (1, leaf.size)


def _sequence(x, images: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda split, i, m: (split * images + i, m, 0, 0))


def _image(x, images: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, *x.shape[1:]), lambda split, i, m: (split * images + i, 0, 0))


def _scalars(x, images: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, *x.shape[1:]), lambda split, i, m: (split * images + i, 0, 0), memory_space=pltpu.SMEM)


def _whole(x, images: int) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda split, i, m: (0, 0))


def _split(x, images: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, *x.shape[1:]), lambda split, i, m: (split, 0, 0))
