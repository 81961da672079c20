"""Sharding of arrays: a mesh with axes data and fsdp, a rule for parameters by shape, batches over both axes."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from tc_jepa.errors import UserError

AXES = ("data", "fsdp")
MIN_SHARDED_SIZE = 2**12  # elements; below this, gathering costs more than the saved memory is worth


def make_mesh(data: int, fsdp: int) -> Mesh:
    """Returns a mesh of data x fsdp over all devices; -1 for one of them is the number of devices left.

    Raises UserError as `mesh_shape` does.
    """
    shape = mesh_shape(data, fsdp, jax.device_count())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(data: int, fsdp: int, devices: int) -> tuple[int, int]:
    """Returns the sizes of both axes, where -1 for one of them is the number of devices left.

    Raises UserError, naming the keys, where the product is not the number of devices.
    """
    shape = [data, fsdp]
    if shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
        raise UserError(
            f"mesh.data={data}, mesh.fsdp={fsdp}: give positive numbers, or -1 for one of them", about="mesh"
        )
    if -1 in shape:
        shape[shape.index(-1)] = devices // max(1, -int(np.prod(shape)))
    if int(np.prod(shape)) != devices:
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp} is not the number of devices, {devices}; give factors of that",
            about="mesh.data",
        )
    return shape[0], shape[1]


def local_mesh() -> Mesh:
    """Returns a mesh over the devices of this process, for work that does not involve other processes."""
    return jax.make_mesh(
        (jax.local_device_count(), 1), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.local_devices()
    )


def parameter_sharding(mesh: Mesh, tree: Any, min_size: int = MIN_SHARDED_SIZE) -> Any:
    """Returns a NamedSharding for every leaf.

    Leaves of at least `min_size` elements are sharded over fsdp, along their largest axis that it divides; others are
    replicated.
    """

    def rule(leaf) -> NamedSharding:
        spec = [None] * len(leaf.shape)
        candidates = [i for i, n in enumerate(leaf.shape) if n % mesh.shape["fsdp"] == 0]
        if candidates and mesh.shape["fsdp"] > 1 and leaf.size >= min_size:
            spec[max(candidates, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, tree)


def put_parameters(mesh: Mesh, tree: Any) -> Any:
    """Returns parameters, on the host or on one device, sharded over the mesh."""
    return jax.device_put(tree, parameter_sharding(mesh, tree))


def placed(abstract: Any, layout: Any) -> Any:
    """Returns shapes and dtypes with the shardings of `layout`, to restore arrays in them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of the leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def constrain_to(mesh: Mesh):
    """Returns a function that shards an activation's leading axis over all devices, for the modules' `constrain`.

    Without it XLA may gather activations instead of parameters where batches are small.
    """
    return lambda x: jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def on_each_device(mesh: Mesh):
    """Returns a function (function, shared, *batched) -> function(shared, *batched), computed in parts.

    Every device runs `function` on all of `shared`, a tree of arrays, and on its section of the leading axis of each
    batched array. The result's leading axis is put together likewise.
    """

    def run(function, shared, *batched):
        specs = PartitionSpec(), *(PartitionSpec(AXES) for _ in batched)
        local = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXES), check_vma=False)
        return local(shared, *batched)

    return run


def platform(mesh: Mesh) -> str:
    """Returns what the devices are, in JAX's name: cpu, gpu or tpu."""
    return mesh.devices.flat[0].platform


def check_batch(mesh: Mesh, batch_size: int, name: str) -> None:
    """Raises UserError, naming the key or flag `name`, where the devices do not divide the batch."""
    if batch_size % mesh.size:
        raise UserError(
            f"{name}={batch_size} is not divisible by the number of devices; give a multiple of {mesh.size}",
            about=name.removeprefix("--"),
        )


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Returns the global arrays of a batch, from the part of it that this process has read."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
