"""Plans: loops are counted as often as they run, and collectives are read from a program's text."""

import importlib.util
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.models.vit import SIZES
from tc_jepa.planning import chips, loops
from tc_jepa.planning.step import Collective, collectives

ROOT = Path(__file__).parent.parent


def looped(w, x):
    """3 products in a loop, with their gradient; 1 outside."""

    @jax.checkpoint
    def body(x, scale):
        return jnp.tanh(x @ w) * scale, x.sum()

    x, sums = jax.lax.scan(body, x, jnp.arange(1.0, 4.0))
    return (x @ w).sum() + (sums * jnp.arange(3.0)).sum()


W, X = (np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate([(6, 6), (5, 6)]))


def test_a_loop_is_counted_as_often_as_it_runs():
    once = 2 * 5 * 6 * 6
    assert loops.product_flops(jax.make_jaxpr(looped)(W, X).jaxpr) == 4 * once
    # Backward: two products for each one forward, and in the loop the forward one again.
    assert loops.product_flops(jax.make_jaxpr(jax.grad(looped, (0, 1)))(W, X).jaxpr) == (4 + 3 * 3 + 2) * once


def test_without_its_loops_a_function_computes_the_same():
    function = jax.value_and_grad(looped, (0, 1))
    closed = jax.make_jaxpr(function)(W, X)
    assert loops.has_loops(closed.jaxpr)
    flat = jax.jit(loops.unrolled(closed))
    assert not loops.has_loops(jax.make_jaxpr(flat)(W, X).jaxpr)
    for found, expected in zip(flat(W, X), jax.tree.leaves(function(W, X)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(("data", "fsdp", "axes"), [(8, 1, "data"), (2, 4, "data+fsdp")])
def test_collectives_are_those_of_the_program(data, fsdp, axes):
    mesh = sharding.make_mesh(data, fsdp)
    rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    compiled = jax.jit(lambda x: x.sum(axis=0), in_shardings=rows, out_shardings=everywhere).lower(np.ones((8, 6)))
    found = collectives(compiled.compile().as_text(), mesh)
    assert found == [Collective("all-reduce", axes, 1, 6 * 4, False)]


def test_collectives_in_a_loop_are_told_apart():
    mesh = sharding.make_mesh(2, 4)
    layout = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))

    def total(x):
        return jax.lax.scan(lambda carry, row: (jnp.sin(carry + row.sum()), None), 0.0, x)[0]

    text = jax.jit(total, in_shardings=layout).lower(np.ones((3, 8), np.float32)).compile().as_text()
    assert [(one.kind, one.axes, one.in_loop) for one in collectives(text, mesh)] == [("all-reduce", "fsdp", True)]


def plan(folder, *arguments: str) -> subprocess.CompletedProcess:
    config = "--config=configs/scenes_standard.py"
    command = [sys.executable, "-m", "launch.plan", config, f"--output={folder}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True)


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "h100:"])
def test_an_unknown_topology_is_refused(topology):
    with pytest.raises(UserError) as refused:
        chips.make_slice(topology, -1, 1)
    assert refused.value.about == "topology"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "package", "kernels"),
    [("v5e:2x2", "libtpu", "plain"), ("v5e:2x2", "libtpu", "tpu"), ("h100:4", "jax_cuda13_plugin", "plain")],
)
def test_a_step_is_planned_without_the_devices(tmp_path, topology, package, kernels):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if topology.startswith("h100") and shutil.which("ptxas") is None:
        pytest.skip("ptxas, of CUDA, is not on the PATH")
    done = plan(tmp_path, f"--topology={topology}", "--noprice", f"--config.model.kernels={kernels}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    memory = found["memory"]
    assert found["devices"] == 4 and not found["tried"] and memory["total"] < 2**30
    # AdamW keeps two moments. Every device has all parameters, and a quarter of the batch.
    assert memory["optimizer"] == pytest.approx(2 * memory["params"], rel=1e-3)
    assert memory["batch"] > 32 / 4 * 60 * 60 * 3
    # Gradients are exchanged, a number for each parameter, and what is logged: means, and the covariance of features.
    assert {one["kind"] for one in found["collectives"]} == {"all-reduce"}
    assert {one["axes"] for one in found["collectives"]} == {"data"}
    assert not any(one["in_loop"] for one in found["collectives"])
    exchanged = sum(one["bytes"] for one in found["collectives"])
    assert memory["params"] <= exchanged < memory["params"] + 4 * SIZES["nano"].width ** 2 + 2**16
    assert (found["seconds"] is not None) == (package == "libtpu")
