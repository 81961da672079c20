"""A train step as the compiler of an accelerator sees it: memory, work and communication of one device."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import re
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
import ml_collections
import numpy as np

from tc_jepa.distributed import sharding
from tc_jepa.experiment.devices import check_step
from tc_jepa.experiment.experiment import build_experiment, Experiment
from tc_jepa.models.text.embedding import StoredWords
from tc_jepa.models.text.t5 import T5Config, T5Encoder
from tc_jepa.planning import loops
from tc_jepa.planning.chips import Chip, COMPILER_OPTIONS
from tc_jepa.train import compiled_step

T5_BASE = T5Config(32128, 768, 64, 3072, 12, 12, 32, 128, gated=False, epsilon=1e-6)  # t5-base, the recipes' T5 1.0


class Collective(NamedTuple):
    """Operations of one kind over one group of devices, in a step."""

    kind: str  # as in HLO, such as all-reduce
    axes: str  # of the mesh, such as data or data+fsdp
    count: int
    bytes: int  # of the results on one device
    in_loop: bool  # the numbers are then those of one iteration


class StepPlan(NamedTuple):
    """All numbers are those of one device and one step; bytes unless said."""

    memory: dict[str, int]  # "params", "optimizer", "extra", "frozen", "batch", "temporary", "total"
    limit: int  # what the device has
    flops: int  # of all matrix products, each loop counted as often as it runs
    seconds: float | None  # the compiler's estimate; None where it gives none
    bytes_moved: float | None  # to and from the device's memory, by the compiler
    collectives: list[Collective]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        return self.memory["total"] <= self.limit

    def peak_share(self, chip: Chip) -> float | None:
        """The share of the chip's rate of products at which a step of the estimated length runs."""
        return None if self.seconds is None else self.flops / self.seconds / chip.flops


class OutOfMemory(Exception):
    """The compiler found no program that fits. The message is its own."""


def plan_step(config: ml_collections.ConfigDict, chip: Chip, mesh: Mesh, cost: bool = True) -> StepPlan:
    """Compiles the train step of a configuration for the devices of `mesh`, which need not be there.

    The data that a configuration names is not read: only its shapes matter. Without `cost` the compiler is not asked
    for seconds and bytes, which takes a compilation of its own where the step has loops. Raises OutOfMemory, and
    UserError for a batch that cannot be computed so.
    """
    experiment = planned(config, mesh)
    check_step(experiment)
    state = jax.eval_shape(experiment.initial_state, experiment.frozen, None, None)
    layout = sharding.parameter_sharding(mesh, state)
    rows = config.train.batch_size
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype), experiment.example)
    start = time.perf_counter()
    traced = compiled_step(experiment, layout).trace(state, batch, experiment.frozen)
    compiled = _compile(traced.lower(), chip)
    seconds = time.perf_counter() - start
    found = compiled.memory_analysis()
    memory = {
        "params": _bytes(state.params, layout.params),
        "optimizer": _bytes(state.opt_state, layout.opt_state),
        "extra": _bytes(state.extra, layout.extra),
        "frozen": _bytes(experiment.frozen, sharding.parameter_sharding(mesh, experiment.frozen)),
        "batch": _bytes(batch, jax.tree.map(lambda _: sharding.batch_sharding(mesh), batch)),
        "temporary": found.temp_size_in_bytes,
        "total": found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes,
    }
    estimate = _cost(traced, compiled, chip) if cost else {}
    return StepPlan(
        memory=memory,
        limit=chip.memory,
        flops=loops.product_flops(traced.jaxpr.jaxpr) // mesh.size,
        seconds=estimate.get("optimal_seconds"),
        bytes_moved=estimate.get("bytes accessed"),
        collectives=collectives(compiled.as_text(), mesh),
        compile_seconds=seconds,
    )


def planned(config: ml_collections.ConfigDict, mesh: Mesh) -> Experiment:
    """Returns the experiment of a configuration on scenes, with a text encoder of the right sizes and no weights."""
    config = config.copy_and_resolve_references()
    text, config.data.path, config.train.init_from = config.model.text, "", ""
    config.data.train_scenes, config.captions.vectors, config.model.text_weights = 1, "", ""
    config.model.text = "embedding"
    config.supervised.tasks = ()  # those of the data, of which scenes have others
    experiment = build_experiment(config, mesh)
    if experiment.reader is None or text == "embedding":
        return experiment
    example = experiment.example
    if text == "stored":
        vectors = np.zeros((*example.caption_words.shape, T5_BASE.width), np.float16)
        encoder, frozen, example = StoredWords(), {}, example._replace(caption_words=vectors)
    else:
        encoder = T5Encoder(T5_BASE, {"float32": np.float32, "bfloat16": jax.numpy.bfloat16}[config.model.text_dtype])
        one = jax.tree.map(lambda x: x[None], (example.caption_words, example.word_valid))
        frozen = jax.eval_shape(encoder.init, jax.random.key(0), *one)["params"]
    experiment = dataclasses.replace(
        experiment, method=dataclasses.replace(experiment.method, text=encoder), frozen={"text": frozen}
    )
    vars(experiment)["example"] = example
    return experiment


def _compile(lowered, chip: Chip):
    try:
        return lowered.compile(compiler_options=COMPILER_OPTIONS[chip.platform])
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise OutOfMemory(str(error).splitlines()[0]) from error
        raise


def _cost(traced, compiled, chip: Chip) -> Mapping[str, float]:
    """The compiler's cost analysis of the step with every iteration of its loops; {} where it makes none."""
    if chip.platform == "cuda":  # its analysis knows neither seconds nor bytes
        return {}
    if loops.has_loops(traced.jaxpr.jaxpr):
        flat = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in jax.tree.leaves(compiled.in_avals)]
        compiled = _compile(jax.jit(loops.unrolled(traced.jaxpr)).lower(*flat), chip)
    return compiled.cost_analysis()


def _bytes(tree: Any, layout: Any) -> int:
    """Bytes of a tree of arrays on one device."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(layout), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize for x, s in leaves)


COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")
# Groups of devices, or pairs of sender and receiver, are written {{0,1},{2,3}}, or [2,2]<=[2,2]T(1,0), which are rows
# of reordered numbers, or as axes of a mesh: mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}.
IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
ROWS = re.compile(rf"replica_groups=\[([\d,]+)\]<={IOTA}")
MESH = re.compile(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({IOTA}\))? \{{([^}}]*)\}}")


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Returns the collectives of a compiled program by kind, axes of the mesh, and whether they are in a loop."""
    found: dict[tuple[str, str, bool], list[int]] = {}
    looped = set(_looped(text))
    for computation, line in _lines(text):
        if match := COLLECTIVE.search(line):
            key = match["kind"], _axes(line, mesh), computation in looped
            found.setdefault(key, []).append(_result_bytes(match["result"]))
    return [Collective(*key[:2], len(sizes), sum(sizes), key[2]) for key, sizes in sorted(found.items())]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(name of the computation, line) of each line of a program's text."""
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = header[1]
        yield computation, line


def _looped(text: str) -> Iterator[str]:
    """Names of the computations that run in a loop: bodies, and what they call."""
    calls: dict[str, list[str]] = {}
    waiting = []
    for computation, line in _lines(text):
        called = re.findall(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", line)
        calls.setdefault(computation, []).extend(called)
        waiting += re.findall(r"body=%?([\w.\-]+)", line)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += calls.get(name, [])
    yield from seen


def _result_bytes(result: str) -> int:
    sizes = [
        math.prod(map(int, filter(None, dimensions.split(",")))) * (1 if kind == "pred" else _width(kind))
        for kind, dimensions in ARRAY.findall(result)
    ]
    return sum(sizes)


def _width(kind: str) -> int:
    """Bytes of an element, from a name such as bf16, f32, u8 or f8e4m3."""
    return int(re.search(r"\d+", kind)[0]) // 8


def _axes(line: str, mesh: Mesh) -> str:
    """Names of the mesh's axes along which a collective communicates, from its first group of devices."""
    if match := LISTED.search(line):
        return axes_of(_numbers(match[1]), mesh)
    if match := ROWS.search(line):
        rows = _numbers(match[1])[0]
        return axes_of(_reordered(match[2], match[3]).reshape(rows, -1)[0], mesh)
    if match := MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        shape = [int(size) for size in sizes.values()]
        numbers = _reordered(match[2] or ",".join(sizes.values()), match[3]).reshape(shape)
        chosen = re.findall(r"'(\w+)'", match[4])
        return axes_of(numbers[tuple(slice(None) if axis in chosen else 0 for axis in sizes)].ravel(), mesh)
    return "unknown"


def _numbers(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def _reordered(dims: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in an array of shape `dims`, transposed by `order`."""
    shape = _numbers(dims)
    return np.arange(math.prod(shape)).reshape(shape).transpose(_numbers(order) if order else range(len(shape)))


def axes_of(group: Sequence[int], mesh: Mesh) -> str:
    """Names of the axes, joined by +, that change within a group of positions in the mesh's row-major order."""
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    names = [name for name, row in zip(mesh.axis_names, places) if len(set(row.tolist())) > 1]
    return "+".join(names) or "none"
