"""How arrays lie over devices: a mesh with axes data and fsdp, a shape rule for parameters, batches over both."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from tc_jepa.errors import UserError

AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**12  # elements; below this, gathering costs more than the memory it saves


def make_mesh(data: int, fsdp: int) -> Mesh:
    """A mesh of data x fsdp over all devices; -1 for one of them means whatever remains."""
    devices = jax.device_count()
    shape = [data, fsdp]
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise UserError(f"mesh.data={data}, mesh.fsdp={fsdp}: give positive numbers, or -1 for one of them")
    if -1 in shape:
        shape[shape.index(-1)] = devices // max(1, -int(np.prod(shape)))
    if int(np.prod(shape)) != devices:
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp} does not use the {devices} devices here; multiply to that"
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def local_mesh() -> Mesh:
    """A mesh over the devices of this process alone, for work that needs no other."""
    return jax.make_mesh(
        (jax.local_device_count(), 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.local_devices()
    )


def parameter_sharding(mesh: Mesh, tree: Any, min_size: int = MIN_SHARDED_SIZE) -> Any:
    """A NamedSharding for every leaf: along fsdp, its largest axis that divides, if it has `min_size` elements."""

    def rule(leaf) -> NamedSharding:
        spec = [None] * len(leaf.shape)
        candidates = [i for i, n in enumerate(leaf.shape) if n % mesh.shape["fsdp"] == 0]
        if candidates and mesh.shape["fsdp"] > 1 and leaf.size >= min_size:
            spec[max(candidates, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, tree)


def put_parameters(mesh: Mesh, tree: Any) -> Any:
    """Parameters, of the host or of one device, laid out over the mesh."""
    return jax.device_put(tree, parameter_sharding(mesh, tree))


def placed(abstract: Any, layout: Any) -> Any:
    """Shapes and dtypes with the shardings to restore them in."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain_to(mesh: Mesh):
    """A function that keeps an activation's leading axis over all devices, for the modules' `constrain`.

    Without it XLA may gather activations instead of parameters when batches are small.
    """
    return lambda x: jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def check_batch(mesh: Mesh, batch_size: int, name: str) -> None:
    if batch_size % mesh.size:
        raise UserError(
            f"{name}={batch_size} is not divisible by the {mesh.size} devices of the mesh; make it a multiple"
        )


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """This process's part of a global batch -> global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
