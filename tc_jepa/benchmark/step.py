"""A training step on this machine: its time, its operations and its memory, on data of the right shapes.

Operations are those of matrix products, 2 for each multiplication, counted in the traced step, by the part of the
method that they belong to (jax.named_scope). To check that, everything else is counted too, and compared with the
compiler's count of the same step.
"""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np

from tc_jepa.benchmark.figures import Figure, Figures, of_repeats, Options, per_second
from tc_jepa.distributed import sharding
from tc_jepa.experiment.devices import check_step
from tc_jepa.experiment.experiment import Experiment
from tc_jepa.models.conditioners import CONDITIONERS
from tc_jepa.planning import loops
from tc_jepa.planning.step import planned
from tc_jepa.train import compiled_step, first_state

WARM_UP = 2  # steps before those that are timed
LEAST_PRODUCT_SECONDS = 0.05  # of a matrix product that measures the rate of the device
LARGEST_PRODUCT = 16_384
GRADIENT = ("transpose", "jvp")  # transformations that JAX names in a scope


class Built(NamedTuple):
    """A compiled step with its arguments."""

    experiment: Experiment
    traced: Any
    compiled: Any
    state: Any
    batch: Any
    frozen: Any
    trace_seconds: float
    compile_seconds: float


def measure(config: ml_collections.ConfigDict, options: Options) -> Figures:
    """Returns the figures of the train step of `config` on this machine's devices.

    Data and weights that the configuration names are not read: the batch is one image over and over, with captions of
    the right shapes, and a T5 is that of t5-base with random weights.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    built = build(config, mesh)
    seconds = timed(built, options.repeats)
    images, jaxpr = config.train.batch_size, built.traced.jaxpr.jaxpr
    products, others = operations(jaxpr), loops.other_operations(jaxpr)
    total = sum(products.values())
    found = {
        "step/trace": Figure(built.trace_seconds, "s"),
        "step/compile": Figure(built.compile_seconds, "s"),
        "step/seconds": seconds,
        "step/images": per_second(seconds, images, "images/s"),
        **{f"step/operations/{part}": Figure(count / 1e9, "G a step") for part, count in sorted(products.items())},
        "step/operations": Figure(total / 1e9, "G a step, of all matrix products"),
        "step/operations/not_products": Figure(others / 1e9, "G a step"),
    }
    found |= checked(built.traced, total + others)
    rate = matmul_rate(mesh, jnp.dtype(config.model.dtype), options.repeats)
    found["step/achieved"] = per_second(seconds, total / 1e12, "T operations/s")
    found["step/matmul"] = per_second(rate, 1e-12, "T operations/s of a large product")
    found["step/share"] = Figure(100 * total * rate.value / seconds.value, "% of that rate")
    found |= memory(built)
    del built
    return found | price_of_text(config, mesh, options)


def trace(config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[Experiment, Any, Any]:
    """Returns the experiment of a configuration, the layout of its state, and its traced train step."""
    experiment = planned(config, mesh)
    check_step(experiment)
    abstract = jax.eval_shape(experiment.initial_state, experiment.frozen, None, experiment.given_extra)
    layout = sharding.parameter_sharding(mesh, abstract)
    rows = config.train.batch_size
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *np.shape(x)), np.asarray(x).dtype), experiment.example)
    return experiment, layout, compiled_step(experiment, layout).trace(abstract, batch, experiment.frozen)


def build(config: ml_collections.ConfigDict, mesh: Mesh) -> Built:
    """Compiles the train step of a configuration and makes its arguments."""
    start = time.perf_counter()
    experiment, layout, traced = trace(config, mesh)
    lowered = traced.lower()
    middle = time.perf_counter()
    compiled = lowered.compile()
    end = time.perf_counter()
    frozen = sharding.put_parameters(mesh, random_like(experiment.frozen))
    state = first_state(experiment, layout, frozen, None)
    rows = config.train.batch_size // jax.process_count()
    whole = jax.tree.map(lambda x: np.broadcast_to(x, (rows, *np.shape(x))), experiment.example)
    batch = sharding.put_batch(mesh, whole)
    return Built(experiment, traced, compiled, state, batch, frozen, middle - start, end - middle)


def random_like(tree: Any) -> Any:
    """Returns small random numbers in the place of shapes; arrays stay."""
    rng = np.random.default_rng(0)

    def fill(x: Any) -> Any:
        abstract = isinstance(x, jax.ShapeDtypeStruct)
        return (0.02 * rng.standard_normal(x.shape, np.float32)).astype(x.dtype) if abstract else x

    return jax.tree.map(fill, tree)


def timed(built: Built, repeats: int) -> Figure:
    """Returns the seconds of a step. Each is waited for, so that its time is its own."""
    state, seconds = built.state, []
    for i in range(WARM_UP + repeats):
        start = time.perf_counter()
        state, metrics = built.compiled(state, built.batch, built.frozen)
        jax.block_until_ready((state, metrics))
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    return of_repeats(seconds, "s")


def operations(jaxpr: Any) -> dict[str, int]:
    """Returns the operations of the matrix products of a step by part, such as "predictor" and "predictor, backward".

    A part is the first scope, or the conditioner wherever it is. With rematerialisation, what the backward pass
    computes again counts as backward.
    """
    found: dict[str, int] = {}
    for path, count in loops.products(jaxpr):
        part = part_of(path)
        found[part] = found.get(part, 0) + count
    return found


def part_of(path: str) -> str:
    """The part to which a path of scopes belongs; it looks like "transpose(jvp(predictor))/Predictor/blocks_0"."""
    names = [name for name in path.replace("(", "/").replace(")", "/").split("/") if name]
    backward = ", backward" if "transpose" in names else ""
    scopes = [name for name in names if name not in GRADIENT]
    if any(scope.startswith("conditioner") for scope in scopes) and not any(x.startswith("blocks_") for x in scopes):
        return f"conditioner{backward}"
    return f"{scopes[0] if scopes else 'other'}{backward}"


def checked(traced: Any, total: int) -> Figures:
    """Returns XLA's count of all operations of a traced step, and by how much it differs from `total`.

    It is the cost analysis of the whole program, before it is divided over devices. As that counts the body of a loop
    once, the loops are written out for it.
    """
    lowered = traced.lower()
    if loops.has_loops(traced.jaxpr.jaxpr):
        flat = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in traced.jaxpr.in_avals]
        lowered = jax.jit(loops.unrolled(traced.jaxpr)).lower(*flat)
    counted = lowered.cost_analysis()["flops"]
    return {
        "step/operations/compiler": Figure(counted / 1e9, "G a step, by XLA's cost analysis"),
        "step/operations/difference": Figure(100 * (counted / total - 1), "% that it counts more, in all"),
    }


def matmul_rate(mesh: Mesh, dtype: jnp.dtype, repeats: int) -> Figure:
    """Returns the seconds of one operation of a product of large square matrices, on all devices at once."""
    side = 512
    while True:
        x = jax.device_put(np.ones((mesh.size, side, side), dtype), sharding.batch_sharding(mesh))
        product = jax.jit(lambda x: jnp.matmul(x, x) * (1 / x.shape[-1]))
        values = [_seconds(product, x) for _ in range(repeats + 1)][1:]
        if min(values) >= LEAST_PRODUCT_SECONDS or side >= LARGEST_PRODUCT:
            break
        side *= 2
    return of_repeats([value / (2 * mesh.size * side**3) for value in values], "s an operation")


def _seconds(function: Callable, argument: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(argument))
    return time.perf_counter() - start


def memory(built: Built) -> Figures:
    """Returns the bytes of one device: what the compiled step needs, and the peak where the device counts it."""
    found = built.compiled.memory_analysis()
    needed = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    figures = {"step/memory": Figure((needed + found.temp_size_in_bytes) / 1e9, "GB a device, by the compiler")}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        figures["step/memory/peak"] = Figure(stats["peak_bytes_in_use"] / 1e9, "GB on the first device")
    return figures


def price_of_text(config: ml_collections.ConfigDict, mesh: Mesh, options: Options) -> Figures:
    """Returns how many times as long the step takes with captions as without, by conditioner and number of captions."""
    if config.method.name != "jepa" or not options.texts:
        return {}
    plain = timed(build(_changed(config, "none", 1), mesh), options.repeats)
    found = {"step/text/none": plain}
    for name in options.conditioners or [name for name in CONDITIONERS if name != "none"]:
        for captions in options.texts:
            seconds = timed(build(_changed(config, name, captions), mesh), options.repeats)
            ratios = (x / plain.value for x in (seconds.value, seconds.low, seconds.high))
            value, low, high = ratios
            found[f"step/text/{name}/{captions}"] = Figure(value, "times the step without captions", low, high)
    return found


def _changed(config: ml_collections.ConfigDict, conditioner: str, captions: int) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.model.conditioner, config.captions.per_image = conditioner, captions
    return config
