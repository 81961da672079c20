"""The names of I-JEPA's official weights, beside ours: the one map that every converter uses, both ways.

Official names are those of a network's state dict without the `module.` that its training wrapper puts before them
(facebookresearch/ijepa, src/models/vision_transformer.py). Its position embeddings are fixed and have no place here:
they are what layers.sincos_positions computes, which `check_positions` holds a file to.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flax import traverse_util
import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.models import layers
from tc_jepa.models.layers import Params

WRAPPER = "module."
POSITION_TOLERANCE = 1e-5
Array = np.ndarray


class Entry(NamedTuple):
    """One official tensor: where it lies in our parameters, and how its values become ours and theirs again."""

    path: tuple[str, ...]
    ours: Callable[[Array], Array]
    theirs: Callable[[Array], Array]


def encoder_map(depth: int, patch_size: int) -> dict[str, Entry]:
    """Official name -> entry, for a context or target encoder of `depth` blocks."""

    def ours(kernel: Array) -> Array:  # [D, 3, p, p] -> [p * p * 3, D], the order of layers.patchify
        return kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))

    def theirs(kernel: Array) -> Array:
        return kernel.reshape(patch_size, patch_size, 3, -1).transpose(3, 2, 0, 1)

    return {
        "patch_embed.proj.weight": Entry(("patch_embed", "kernel"), ours, theirs),
        "patch_embed.proj.bias": _as_is("patch_embed", "bias"),
        **_blocks("blocks", depth),
        **_norm("norm", "norm"),
    }


def predictor_map(depth: int) -> dict[str, Entry]:
    """Official name -> entry, for I-JEPA's predictor of `depth` blocks; a conditioner has no official name."""
    return {
        "mask_token": Entry(("mask_token",), lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),
        **_linear("predictor_embed", "predictor_embed"),
        **_blocks("predictor_blocks", depth),
        **_norm("predictor_norm", "norm"),
        **_linear("predictor_proj", "proj"),
    }


def to_ours(tensors: Mapping[str, Array], entries: Mapping[str, Entry], ignored: tuple[str, ...] = ()) -> Params:
    """Official tensors as our nested parameters. UserError naming what is missing or unexpected, beside `ignored`."""
    missing = sorted(entries.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - entries.keys() - set(ignored))
    if missing or unexpected:
        told = [f"no {', '.join(missing)}"] * bool(missing) + [f"unexpected {', '.join(unexpected)}"] * bool(unexpected)
        raise UserError(f"these are not the weights of this network: {'; '.join(told)}")
    return traverse_util.unflatten_dict({entry.path: entry.ours(tensors[name]) for name, entry in entries.items()})


def to_theirs(params: Params, entries: Mapping[str, Entry]) -> dict[str, Array]:
    """Our parameters under the official names; ValueError where some of ours have none."""
    flat = traverse_util.flatten_dict(params)
    nameless = flat.keys() - {entry.path for entry in entries.values()}
    if nameless:
        raise ValueError(f"no official name for {', '.join(sorted('/'.join(path) for path in nameless))}")
    return {name: entry.theirs(np.asarray(flat[entry.path])) for name, entry in entries.items()}


def without_wrapper(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Names without the `module.` of a distributed training run."""
    return {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}


def check_positions(embedding: Array, grid: tuple[int, int]) -> None:
    """UserError unless `embedding` [1, N, width] is the fixed one: another would be lost without a word."""
    expected = layers.sincos_positions(grid, embedding.shape[-1])
    if embedding.shape[1:] != expected.shape or np.abs(embedding[0] - expected).max() > POSITION_TOLERANCE:
        raise UserError(f"its position embedding is not the sine-cosine one of a {grid[0]} x {grid[1]} grid")


def _as_is(*path: str) -> Entry:
    return Entry(path, lambda x: x, lambda x: x)


def _norm(theirs: str, *ours: str) -> dict[str, Entry]:
    return {f"{theirs}.weight": _as_is(*ours, "scale"), f"{theirs}.bias": _as_is(*ours, "bias")}


def _linear(theirs: str, *ours: str) -> dict[str, Entry]:
    """torch keeps a linear layer's weight as [outputs, inputs]."""
    return {
        f"{theirs}.weight": Entry((*ours, "kernel"), np.transpose, np.transpose),
        f"{theirs}.bias": _as_is(*ours, "bias"),
    }


def _blocks(theirs: str, depth: int) -> dict[str, Entry]:
    entries = {}
    for i in range(depth):
        name, path = f"{theirs}.{i}", f"blocks_{i}"
        entries |= _norm(f"{name}.norm1", path, "norm1") | _norm(f"{name}.norm2", path, "norm2")
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            entries |= _linear(f"{name}.{layer}", path, *layer.split("."))
    return entries
