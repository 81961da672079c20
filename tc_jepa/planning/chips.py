"""The accelerators that a step can be compiled for without having one, and the meshes of their slices."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
import numpy as np

from tc_jepa.distributed.sharding import AXES, mesh_shape
from tc_jepa.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """One device."""

    platform: str  # of JAX
    memory: int  # bytes that a program can have
    flops: float  # bfloat16 operations a second of dense matrix products, as published
    bandwidth: float  # bytes a second of its memory, as published
    gpu: Mapping[str, Any] = {}  # what XLA's compiler for GPUs must know of it


def _gpu(cores: int, fpus: int, shared: int, cache: int, clock: float, memory: int, bandwidth: int, major: int):
    return {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared + 1024,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": bandwidth,
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": memory,
        "shared_memory_per_block_optin": shared,
        "cuda_compute_capability": {"major": major},
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }


# TPU: memory is what the compiler (libtpu 0.0.42) says that it has; rates are those of cloud.google.com/tpu/docs/v4,
# v5e, v5p and v6e. GPU: memory, bandwidth and the compiler's description are those of XLA (openxla/xla
# xla/backends/gpu/target_config/specs/{a100_sxm_80,h100_sxm,h200,b200}.txtpb); rates those of NVIDIA's data sheets,
# without sparsity.
CHIPS = {
    "v4": Chip("tpu", int(30.75 * GIB), 275e12, 1228e9),
    "v5e": Chip("tpu", int(15.75 * GIB), 197e12, 819e9),
    "v5p": Chip("tpu", int(95.74 * GIB), 459e12, 2765e9),
    "v6e": Chip("tpu", int(31.25 * GIB), 918e12, 1640e9),
    "a100": Chip(
        "cuda",
        85_100_068_864,
        312e12,
        2039e9,
        _gpu(108, 64, 166_912, 41_943_040, 1.41, 85_100_068_864, 2_039_040_000_000, 8),
    ),
    "h100": Chip(
        "cuda",
        84_942_979_072,
        989e12,
        3352e9,
        _gpu(132, 128, 232_448, 52_428_800, 1.98, 84_942_979_072, 3_352_320_000_000, 9),
    ),
    "h200": Chip(
        "cuda",
        151_397_597_184,
        989e12,
        4800e9,
        _gpu(132, 128, 232_448, 52_428_800, 1.98, 151_397_597_184, 4_800_000_000_000, 9),
    ),
    "b200": Chip(
        "cuda",
        191_514_411_008,
        2250e12,
        7672e9,
        _gpu(148, 128, 232_448, 132_644_864, 1.965, 191_514_411_008, 7_672_320_000_000, 10),
    ),
}
# Compiling for a GPU without one fails with Triton's matrix products, and cannot time what it chooses among.
COMPILER_OPTIONS = {
    "tpu": {},
    "cuda": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


def make_slice(topology: str, data: int, fsdp: int) -> tuple[Chip, Mesh]:
    """Returns the chip and a mesh over the devices of a topology, none of which is there.

    A topology is CHIP:SIZE, such as v5e:16x16 for TPUs, and h100:8 or h100:4x8, hosts x devices, for GPUs. UserError
    for an unknown one, for a mesh that it does not hold, and where the compiler is not installed.
    """
    name, _, size = topology.partition(":")
    if name not in CHIPS or not size:
        raise UserError(
            f"--topology={topology}: give CHIP:SIZE with a chip of {', '.join(CHIPS)}, such as v5e:16x16 or h100:8",
            about="topology",
        )
    chip = CHIPS[name]
    try:
        described = topologies.get_topology_desc(platform=chip.platform, **_topology(chip, topology, name, size))
    except Exception as error:  # JAX and the compilers' plugins raise all kinds
        extra = "plan-tpu" if chip.platform == "tpu" else "plan-gpu"
        raise UserError(
            f"--topology={topology} cannot be compiled for ({str(error).splitlines()[0]}); if the compiler is not "
            f"installed: pip install '.[{extra}]'",
            about="topology",
        ) from error
    devices = np.asarray(described.devices)
    return chip, Mesh(devices.reshape(mesh_shape(data, fsdp, devices.size)), AXES, axis_types=(AxisType.Auto,) * 2)


def _topology(chip: Chip, topology: str, name: str, size: str) -> dict[str, str]:
    if chip.platform == "tpu":
        return {"topology_name": topology}
    hosts, _, devices = size.rpartition("x")
    target = {
        "gpu_device_info": chip.gpu,
        "platform_name": "'CUDA'",
        "dnn_version_info": {"major": 9, "minor": 10, "patch": 0},
        "device_description_str": f"'{name}'",
    }
    return {
        "topology_name": name,
        "topology": f"1x{hosts or 1}x{devices}",
        "target_config": _text(target)[1:-1],
    }


def _text(message: Mapping[str, Any]) -> str:
    """A protocol buffer message as text."""
    fields = (f"{key} {_text(x)}" if isinstance(x, Mapping) else f"{key}: {x}" for key, x in message.items())
    return "{ " + " ".join(fields) + " }"
