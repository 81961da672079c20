"""Loops of a traced function: its operations with every iteration counted, and the function without loops.

XLA's cost analysis counts the body of a loop once. So the cost of a step is asked for a program in which `unrolled` has
written every iteration out.
"""

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any

import jax
from jax.extend import core


def product_flops(jaxpr: core.Jaxpr) -> int:
    """Returns the operations of all matrix products of a computation, loops included: 2 for each multiplication."""
    return sum(count for _, count in products(jaxpr))


def products(jaxpr: core.Jaxpr, path: str = "") -> Iterator[tuple[str, int]]:
    """The matrix products of a computation: (path of scopes, operations), loops included.

    A path has the names of jax.named_scope and of Flax's modules, from the outermost, with / between.
    """
    for equation in jaxpr.eqns:
        here = f"{path}/{equation.source_info.name_stack}"
        times = _times(equation)
        for inner in _inner(equation):
            yield from ((below, times * count) for below, count in products(inner, here))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            yield here, 2 * summed * math.prod(equation.outvars[0].aval.shape)


def _times(equation) -> int:
    """How often the computations among an equation's parameters run: in a loop, a kernel's grid, on each device."""
    params = equation.params
    runs = {
        "scan": lambda: params["length"],
        "pallas_call": lambda: math.prod(params["grid_mapping"].grid),
        "shard_map": lambda: params["mesh"].size,
    }
    return runs.get(equation.primitive.name, lambda: 1)()


# What XLA's cost analysis counts as no operation (data movement), or apart, as transcendental.
UNCOUNTED = frozenset(
    "broadcast_in_dim reshape squeeze transpose slice dynamic_slice dynamic_update_slice concatenate pad gather iota "
    "copy split rev stop_gradient optimization_barrier sharding_constraint random_bits random_wrap random_unwrap "
    "random_fold_in random_seed random_split exp exp2 expm1 log log1p tanh logistic rsqrt sqrt cbrt "
    "sin cos tan pow erf".split()
)
WRITTEN_OUT = ("erfc", "erf_inv")  # XLA is given polynomials in their place


def other_operations(jaxpr: core.Jaxpr) -> int:
    """Returns the operations of a computation outside of matrix products, about as XLA counts them, loops included.

    One for each element of a result, for a reduction one for each element that it reads. Transcendental functions and
    what moves data count nothing.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, list(_inner(equation))
        if _times(equation) > 1:
            total += _times(equation) * sum(map(other_operations, inner))
        elif name.startswith(("reduce_", "cumsum", "argm", "scatter")):
            total += equation.invars[0].aval.size
        elif inner:
            total += sum(map(other_operations, inner))
        elif name in WRITTEN_OUT:
            total += _operations_an_element(name) * equation.outvars[0].aval.size
        elif name != "dot_general" and name not in UNCOUNTED:
            total += equation.outvars[0].aval.size
    return total


@functools.cache
def _operations_an_element(name: str) -> int:
    """What XLA counts for one element of a function that it is given as arithmetic."""
    elements = jax.ShapeDtypeStruct((128,), jax.numpy.float32)
    return round(jax.jit(getattr(jax.lax, name)).lower(elements).cost_analysis()["flops"] / 128)


def has_loops(jaxpr: core.Jaxpr) -> bool:
    """Returns whether there is a `scan` at any depth."""
    return any(
        equation.primitive.name == "scan" or any(has_loops(inner) for inner in _inner(equation))
        for equation in jaxpr.eqns
    )


def unrolled(closed: core.ClosedJaxpr) -> Callable[..., list[jax.Array]]:
    """Returns a computation as a function of its flat inputs, with the iterations of every `scan` in a row.

    Barriers between the iterations keep the compiler from merging them, as a loop would, and from keeping for the
    backward pass what a loop computes again.
    """

    def function(*arguments):
        return _evaluate(closed.jaxpr, closed.consts, arguments)

    return function


WITH_GRADIENT = ("custom_jvp_call", "custom_vjp_call")  # functions with a gradient of their own, of which none is taken


def _evaluate(jaxpr: core.Jaxpr, constants, arguments) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(variable):
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        if equation.primitive.name == "scan":
            outputs = _scan(equation.params, inputs)
        elif (inner := _callee(equation)) is not None and has_loops(inner.jaxpr):
            outputs = _evaluate(inner.jaxpr, inner.consts, jax.lax.optimization_barrier(inputs))
        elif equation.primitive.name in WITH_GRADIENT:
            outputs = _evaluate(inner.jaxpr, inner.consts, inputs)
        else:
            outputs = equation.primitive.bind(*inputs, **equation.params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _scan(params: dict[str, Any], inputs: list[Any]) -> list[Any]:
    body, fixed, carried = params["jaxpr"], params["num_consts"], params["num_carry"]
    constants, carry, xs = inputs[:fixed], inputs[fixed : fixed + carried], inputs[fixed + carried :]
    order = range(params["length"])
    results = {}
    for i in reversed(order) if params["reverse"] else order:
        given = jax.lax.optimization_barrier([*constants, *carry, *(x[i] for x in xs)])
        outputs = _evaluate(body.jaxpr, body.consts, given)
        carry, results[i] = outputs[:carried], outputs[carried:]
    return [*carry, *(jax.numpy.stack(column) for column in zip(*(results[i] for i in order)))]


def _callee(equation) -> core.ClosedJaxpr | None:
    """The computation that an equation calls once with its own inputs."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        if isinstance(inner, core.ClosedJaxpr):
            return inner
        if isinstance(inner, core.Jaxpr) and not inner.constvars:  # of jax.checkpoint
            return core.ClosedJaxpr(inner, ())
    return None


def _inner(equation) -> Iterator[core.Jaxpr]:
    """The computations among an equation's parameters."""
    for value in equation.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
