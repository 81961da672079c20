"""The map between I-JEPA's official weights and this project's parameters, which every converter uses.

Official names are those of a network's state dict without the prefix `module.` of its training wrapper
(facebookresearch/ijepa, src/models/vision_transformer.py). The official position embeddings are fixed: those of
layers.sincos_positions. Where a file's encoder has others, they become the parameter `positions`.
"""

from collections.abc import Callable, Mapping
import math
from pathlib import Path
import re
from typing import Any, NamedTuple

from flax import traverse_util
import numpy as np

from tc_jepa.convert import tensors as checks
from tc_jepa.convert import torch_files
from tc_jepa.convert.weights import EncoderWeights, square_encoder
from tc_jepa.errors import UserError
from tc_jepa.models import layers, vit
from tc_jepa.models.layers import Params

WRAPPER = "module."
NETWORKS = ("target_encoder", "encoder")
POSITIONS, PREDICTOR_POSITIONS = "pos_embed", "predictor_pos_embed"
# The official moving average includes the positions. Rounding moves them away from the encoder's: by 1.4e-4 in 187,500
# float32 steps from momentum 0.996 to 1, by 2.0e-4 in 375,000. A file in bfloat16 is 2.0e-3 away.
POSITION_TOLERANCE = 2.5e-3
HEADS = {size.width: size.heads for name, size in vit.SIZES.items() if name != "nano"}  # by width
Array = np.ndarray


class Entry(NamedTuple):
    """The parameter that corresponds to an official tensor.

    `path` is its place in our parameters; `ours` maps the official array to ours, and `theirs` maps it back.
    """

    path: tuple[str, ...]
    ours: Callable[[Array], Array]
    theirs: Callable[[Array], Array]


def encoder_map(depth: int, patch_size: int) -> dict[str, Entry]:
    """Returns entries by official name, for a context or target encoder of `depth` blocks."""

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
    """Returns entries by official name, for a predictor of `depth` blocks; a conditioner has no official names."""
    return {
        "mask_token": Entry(("mask_token",), lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),
        **_linear("predictor_embed", "predictor_embed"),
        **_blocks("predictor_blocks", depth),
        **_norm("predictor_norm", "norm"),
        **_linear("predictor_proj", "proj"),
    }


def encoder_shapes(size: vit.Size, patch_size: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all official tensors of an encoder on `positions` patches."""
    width = size.width
    return {
        POSITIONS: (1, positions, width),
        "patch_embed.proj.weight": (width, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
        **_block_shapes("blocks", size.depth, width, size.hidden),
        **_with_bias("norm", (width,)),
    }


def predictor_shapes(width: int, depth: int, encoder_width: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all official tensors of a predictor on `positions` patches."""
    return {
        PREDICTOR_POSITIONS: (1, positions, width),
        "mask_token": (1, 1, width),
        **_with_bias("predictor_embed", (width, encoder_width)),
        **_block_shapes("predictor_blocks", depth, width, 4 * width),
        **_with_bias("predictor_norm", (width,)),
        **_with_bias("predictor_proj", (encoder_width, width)),
    }


def load(path: Path, network: str, heads: int | None) -> EncoderWeights:
    """Returns the weights in a file of the official code: see from_checkpoint."""
    checkpoint = torch_files.load(path)
    if network not in checkpoint:
        names = checks.first_names([str(name) for name in checkpoint])
        raise UserError(f"{path} holds no {network}; it has {', '.join(names)}", about="network")
    arrays = {
        name: torch_files.arrays(checkpoint[name], f"{path}, {name}")
        for name in (network, "predictor")
        if name in checkpoint
    }
    return from_checkpoint(arrays, network, heads, path)


def from_checkpoint(
    checkpoint: Mapping[str, Mapping[str, Array]], network: str, heads: int | None, where: object
) -> EncoderWeights:
    """Returns the encoder of an official checkpoint, and its predictor where there is one.

    `checkpoint` holds, by network, float32 tensors by official name with or without the wrapper's prefix; `network` is
    one of NETWORKS. The number of heads is not in the file: `heads` may be None where the width is a standard ViT's.
    Raises UserError naming `where` and the tensors that are missing, unexpected or of another shape.
    """
    encoder = without_wrapper(checkpoint[network])
    here = f"{where}, {network},"
    D, _, *patch = _shape(encoder, "patch_embed.proj.weight", 4, here)
    N = _shape(encoder, POSITIONS, 3, here)[1]
    side = math.isqrt(N)
    if side**2 != N:
        raise UserError(f"{here} has {N} positions, which do not form a square grid; give a model of square images")
    hidden = _shape(encoder, "blocks.0.mlp.fc1.weight", 2, here)[0]
    size = vit.Size(D, _depth(encoder, "blocks"), _heads(D, heads, here), hidden)
    checks.check_shapes(shapes(encoder), encoder_shapes(size, patch[0], N), here)
    weights = from_official(encoder, size, patch[0], side * patch[0])
    if "predictor" not in checkpoint:
        return weights
    predictor = without_wrapper(checkpoint["predictor"])
    here = f"{where}, predictor,"
    P = _shape(predictor, "predictor_embed.weight", 2, here)[0]
    depth = _depth(predictor, "predictor_blocks")
    checks.check_shapes(shapes(predictor), predictor_shapes(P, depth, D, N), here)
    if P % size.heads:
        raise UserError(
            f"{here} has {P} channels, which {size.heads} heads do not divide; give the right --heads=N", about="heads"
        )
    if not are_sincos(predictor[PREDICTOR_POSITIONS], (side, side)):
        raise UserError(
            f"{here} has positions other than the sine-cosine ones, which this predictor cannot have; give another"
        )
    return weights._replace(predictor=to_ours(predictor, predictor_map(depth)))


def from_official(tensors: Mapping[str, Array], size: vit.Size, patch_size: int, image_size: int) -> EncoderWeights:
    """Returns an encoder from checked official tensors. Their positions are kept unless they are sine-cosine ones."""
    side = image_size // patch_size
    stored = not are_sincos(tensors[POSITIONS], (side, side))
    params = to_ours(tensors, encoder_map(size.depth, patch_size))
    if stored:
        params["positions"] = tensors[POSITIONS][0]
    return EncoderWeights(square_encoder(size, patch_size, image_size, stored), params, image_size)


def to_official(weights: EncoderWeights) -> dict[str, Array]:
    """Returns the encoder's official tensors, positions included."""
    encoder, params = weights.encoder, dict(weights.params)
    positions = params.pop("positions", None)
    if positions is None:
        positions = layers.sincos_positions(encoder.trained_grid, encoder.size.width)
    tensors = to_theirs(params, encoder_map(encoder.size.depth, encoder.patch_size))
    return {POSITIONS: np.asarray(positions)[None], **tensors}


def shapes(tensors: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def to_ours(tensors: Mapping[str, Array], entries: Mapping[str, Entry]) -> Params:
    """Returns those official tensors that `entries` name as nested parameters."""
    return traverse_util.unflatten_dict({entry.path: entry.ours(tensors[name]) for name, entry in entries.items()})


def to_theirs(params: Params, entries: Mapping[str, Entry]) -> dict[str, Array]:
    """Returns nested parameters by official name. Raises ValueError for a parameter without one."""
    flat = traverse_util.flatten_dict(params)
    nameless = flat.keys() - {entry.path for entry in entries.values()}
    if nameless:
        raise ValueError(f"no official name for {', '.join(sorted('/'.join(path) for path in nameless))}")
    return {name: entry.theirs(np.asarray(flat[entry.path])) for name, entry in entries.items()}


def without_wrapper(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the tensors by their names without the prefix of the training wrapper."""
    return {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}


def are_sincos(embedding: Array, grid: tuple[int, int]) -> bool:
    """Returns whether `embedding` [1, N, width] is the sine-cosine one of a grid, within POSITION_TOLERANCE."""
    if embedding.shape[-1] % 4:
        return False
    expected = layers.sincos_positions(grid, embedding.shape[-1])
    return embedding.shape[1:] == expected.shape and np.abs(embedding[0] - expected).max() <= POSITION_TOLERANCE


def _shape(tensors: Mapping[str, Array], name: str, dimensions: int, where: str) -> tuple[int, ...]:
    """Returns the shape of a tensor. Raises UserError unless it exists with so many `dimensions`, none of them 0."""
    if name not in tensors:
        raise UserError(f"{where} does not hold the weights of this network: no {name}")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"{where} does not hold the weights of this network: {name} of shape {shape}")
    return shape


def _depth(tensors: Mapping[str, Any], name: str) -> int:
    return len({found[1] for key in tensors if (found := re.match(rf"{name}\.(\d+)\.", key))})


def _heads(width: int, heads: int | None, where: str) -> int:
    if heads is None and width not in HEADS:
        raise UserError(
            f"{where} has {width} channels, which is not the width of a standard ViT; give its --heads=N", about="heads"
        )
    heads = HEADS[width] if heads is None else heads
    if heads < 1 or width % heads:
        raise UserError(
            f"{where} has {width} channels, which --heads={heads} does not divide; give another", about="heads"
        )
    return heads


def _as_is(*path: str) -> Entry:
    return Entry(path, lambda x: x, lambda x: x)


def _norm(theirs: str, *ours: str) -> dict[str, Entry]:
    return {f"{theirs}.weight": _as_is(*ours, "scale"), f"{theirs}.bias": _as_is(*ours, "bias")}


def _linear(theirs: str, *ours: str) -> dict[str, Entry]:
    """Returns the entries of a linear layer, whose weight torch stores as [outputs, inputs]."""
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


def _with_bias(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _block_shapes(name: str, depth: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    block = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    found = {}
    for i in range(depth):
        for layer, shape in block.items():
            found |= _with_bias(f"{name}.{i}.{layer}", shape)
    return found
