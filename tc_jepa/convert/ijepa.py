"""The map between I-JEPA's official weights and this project's parameters, which every converter uses.

Official names are those of a network's state dict without the prefix `module.` of its training wrapper
(facebookresearch/ijepa, src/models/vision_transformer.py). The official position embeddings are fixed: those of
models.positions.sincos_positions. Where a file's encoder has others, they become the parameter `positions`.
"""

from collections.abc import Mapping
import math
from pathlib import Path
import re
from typing import Any

import numpy as np

from tc_jepa.convert import tensors as checks
from tc_jepa.convert import torch_files
from tc_jepa.convert.tensors import kernel, Place, shapes, to_ours, to_theirs
from tc_jepa.convert.weights import EncoderWeights, square_encoder
from tc_jepa.errors import UserError
from tc_jepa.models import vit
from tc_jepa.models.positions import sincos_positions

WRAPPER = "module."
NETWORKS = ("target_encoder", "encoder")
POSITIONS, PREDICTOR_POSITIONS = "pos_embed", "predictor_pos_embed"
# The official moving average includes the positions. Rounding moves them away from the encoder's: by 1.4e-4 in 187,500
# float32 steps from momentum 0.996 to 1, by 2.0e-4 in 375,000. A file in bfloat16 is 2.0e-3 away.
POSITION_TOLERANCE = 2.5e-3
HEADS = {size.width: size.heads for name, size in vit.SIZES.items() if name != "nano"}  # by width
Array = np.ndarray


def encoder_places(size: vit.Size, patch_size: int, positions: int) -> dict[str, Place]:
    """Returns the places of all official tensors of a context or target encoder on `positions` patches."""

    def ours(array: Array) -> Array:  # [D, 3, p, p] -> [p * p * 3, D], the order of layers.patchify
        return array.transpose(2, 3, 1, 0).reshape(-1, len(array))

    def theirs(array: Array) -> Array:
        return array.reshape(patch_size, patch_size, 3, -1).transpose(3, 2, 0, 1)

    width = size.width
    return {
        POSITIONS: _positions(positions, width),
        "patch_embed.proj.weight": Place((width, 3, patch_size, patch_size), ("patch_embed", "kernel"), ours, theirs),
        "patch_embed.proj.bias": Place((width,), ("patch_embed", "bias")),
        **_blocks("blocks", size.depth, width, size.hidden),
        **_norm("norm", width, "norm"),
    }


def predictor_places(width: int, depth: int, encoder_width: int, positions: int) -> dict[str, Place]:
    """Returns the places of all official tensors of a predictor, which has no conditioner, on `positions` patches."""
    return {
        PREDICTOR_POSITIONS: _positions(positions, width),
        "mask_token": Place((1, 1, width), ("mask_token",), np.ravel, lambda array: array.reshape(1, 1, -1)),
        **_linear("predictor_embed", (width, encoder_width), "predictor_embed"),
        **_blocks("predictor_blocks", depth, width, 4 * width),
        **_norm("predictor_norm", width, "norm"),
        **_linear("predictor_proj", (encoder_width, width), "proj"),
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
    heads = HEADS.get(D) if heads is None else heads
    if heads is None:
        raise UserError(f"{here} has {D} channels, not the width of a standard ViT; give its --heads=N", about="heads")
    _check_heads(D, heads, here)
    size = vit.Size(D, _depth(encoder, "blocks"), heads, hidden)
    checks.check_shapes(shapes(encoder), shapes(encoder_places(size, patch[0], N)), here)
    weights = from_official(encoder, size, patch[0], side * patch[0])
    if "predictor" not in checkpoint:
        return weights
    predictor = without_wrapper(checkpoint["predictor"])
    here = f"{where}, predictor,"
    P = _shape(predictor, "predictor_embed.weight", 2, here)[0]
    depth = _depth(predictor, "predictor_blocks")
    places = predictor_places(P, depth, D, N)
    checks.check_shapes(shapes(predictor), shapes(places), here)
    _check_heads(P, size.heads, here)
    if not are_sincos(predictor[PREDICTOR_POSITIONS], (side, side)):
        raise UserError(f"{here} has other positions than the sine-cosine ones, the only ones here; give another")
    del places[PREDICTOR_POSITIONS]
    return weights._replace(predictor=to_ours(predictor, places))


def from_official(tensors: Mapping[str, Array], size: vit.Size, patch_size: int, image_size: int) -> EncoderWeights:
    """Returns an encoder from checked official tensors. Their positions are kept unless they are sine-cosine ones."""
    side = image_size // patch_size
    stored = not are_sincos(tensors[POSITIONS], (side, side))
    params = to_ours(tensors, encoder_places(size, patch_size, side**2))
    if not stored:
        del params["positions"]
    return EncoderWeights(square_encoder(size, patch_size, image_size, stored), params, image_size)


def to_official(weights: EncoderWeights) -> dict[str, Array]:
    """Returns the encoder's official tensors, positions included."""
    encoder = weights.encoder
    computed = sincos_positions(encoder.trained_grid, encoder.size.width)
    places = encoder_places(encoder.size, encoder.patch_size, math.prod(encoder.trained_grid))
    return to_theirs({"positions": computed, **weights.params}, places)


def without_wrapper(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the tensors by their names without the prefix of the training wrapper."""
    return {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}


def are_sincos(embedding: Array, grid: tuple[int, int]) -> bool:
    """Returns whether `embedding` [1, N, width] is the sine-cosine one of a grid, within POSITION_TOLERANCE."""
    if embedding.shape[-1] % 4:
        return False
    expected = sincos_positions(grid, embedding.shape[-1])
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


def _check_heads(width: int, heads: int, where: str) -> None:
    if heads < 1 or width % heads:
        message = f"{where} has {width} channels, which --heads={heads} does not divide; give the right --heads=N"
        raise UserError(message, about="heads")


def _positions(count: int, width: int) -> Place:
    return Place((1, count, width), ("positions",), lambda array: array[0], lambda array: array[None])


def _norm(theirs: str, width: int, *ours: str) -> dict[str, Place]:
    return {f"{theirs}.weight": Place((width,), (*ours, "scale")), f"{theirs}.bias": Place((width,), (*ours, "bias"))}


def _linear(theirs: str, shape: tuple[int, int], *ours: str) -> dict[str, Place]:
    return {f"{theirs}.weight": kernel(shape, *ours), f"{theirs}.bias": Place(shape[:1], (*ours, "bias"))}


def _blocks(theirs: str, depth: int, width: int, hidden: int) -> dict[str, Place]:
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    places = {}
    for i in range(depth):
        name, path = f"{theirs}.{i}", f"blocks_{i}"
        places |= _norm(f"{name}.norm1", width, path, "norm1") | _norm(f"{name}.norm2", width, path, "norm2")
        for layer, shape in linear.items():
            places |= _linear(f"{name}.{layer}", shape, path, *layer.split("."))
    return places
