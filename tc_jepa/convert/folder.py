"""This project's format of a converted encoder: a folder that later versions will still read.

config.json: {"format": "tc_jepa_encoder", "version": 1, "origin": where the weights are from, in English,
"encoder": {"width", "depth", "heads", "hidden", "patch_size", "image_size", "stored_positions"}, "predictor": bool}.
Sizes are integers: width and hidden in channels, patch_size and image_size, the side of square images, in pixels.

encoder.safetensors: float32 tensors named by their path in VisionTransformer's parameters, such as
blocks_0/attn/qkv/kernel; kernels are [inputs, outputs]. Positions are the sine-cosine ones of the trained grid, or with
stored_positions the tensor `positions` [N, width]. With "predictor", predictor.safetensors holds its parameters alike.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

from flax import traverse_util
import numpy as np

from tc_jepa.convert import tensors
from tc_jepa.convert.weights import abstract_params, EncoderWeights, square_encoder
from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import Size

FORMAT, VERSION = "tc_jepa_encoder", 1
ENCODER, PREDICTOR = "encoder.safetensors", "predictor.safetensors"
MOST_POSITIONS = 1 << 28  # numbers in all positions that a config.json may ask for
SIZES = ("width", "depth", "heads", "hidden", "patch_size", "image_size")


def save(weights: EncoderWeights, folder: Path, origin: str) -> None:
    """Writes weights into an existing empty folder."""
    described = named_sizes(weights, SIZES) | {"stored_positions": weights.encoder.stored_positions}
    config = {"format": FORMAT, "version": VERSION, "origin": origin, "encoder": described}
    config["predictor"] = weights.predictor is not None
    (folder / tensors.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors.write(flatten(weights.params), folder / ENCODER)
    if weights.predictor is not None:
        tensors.write(flatten(weights.predictor), folder / PREDICTOR)


def load(folder: Path, *, predictor: bool = False) -> EncoderWeights:
    """Returns the weights in a folder. UserError for a missing, unexpected or unusable file, config key or tensor."""
    path = folder / tensors.CONFIG
    config = tensors.read_json(path)
    form, version = config.get("format"), config.get("version")
    if (form, version) != (FORMAT, VERSION):
        raise UserError(f"{path}: format {form!r}, version {version!r}; this code reads {FORMAT!r}, version {VERSION}")
    described = config.get("encoder")
    if not isinstance(described, dict) or type(described.get("stored_positions")) is not bool:
        raise UserError(f"{path} does not describe the encoder; convert it again")
    size, patch_size, image_size = read_sizes(described, SIZES, path)
    encoder = square_encoder(size, patch_size, image_size, described["stored_positions"])
    expected = tensors.shapes(flatten(abstract_params(encoder, image_size)))
    params = unflatten(tensors.read_tensors(tensors.tensors_in(folder / ENCODER), expected, folder / ENCODER))
    if not predictor or not config.get("predictor"):
        return EncoderWeights(encoder, params, image_size)
    found = tensors.read_tensors(tensors.tensors_in(folder / PREDICTOR), None, folder / PREDICTOR)
    return EncoderWeights(encoder, params, image_size, unflatten(found))


def named_sizes(weights: EncoderWeights, keys: Sequence[str]) -> dict[str, int]:
    """Returns the sizes of an encoder by `keys`, which are in the order of SIZES.

    UserError for an encoder with another stem than a linear one, for which no format has a place.
    """
    if weights.encoder.stem != "linear":
        raise UserError(
            f"an encoder of model.stem={weights.encoder.stem} cannot be converted: formats have only a linear patch "
            "embedding; give the workdir itself to --encoder or load_encoder",
            about="model.stem",
        )
    sizes = (*dataclasses.astuple(weights.encoder.size), weights.encoder.patch_size, weights.image_size)
    return dict(zip(keys, sizes, strict=True))


def read_sizes(values: Mapping[str, Any], keys: Sequence[str], path: Path) -> tuple[Size, int, int]:
    """Returns size, patch_size and image_size from `values`: the inverse of named_sizes.

    Raises UserError, which names the file `path`, where a value is not a positive integer or no encoder can have them.
    """
    for key in keys:
        if type(values.get(key)) is not int or values[key] < 1:
            raise UserError(f"{path}: {key} is {values.get(key)!r}, not a positive integer")
    width, depth, heads, hidden, patch_size, image_size = (values[key] for key in keys)
    if width % heads:
        raise UserError(f"{path}: {heads} heads do not divide the width, {width}")
    if image_size % patch_size:
        raise UserError(f"{path}: patches of {patch_size} px do not divide images of {image_size} px")
    if depth > tensors.MOST_LAYERS:
        raise UserError(f"{path}: a depth of {depth}; at most {tensors.MOST_LAYERS} are built, so download it again")
    if (image_size // patch_size) ** 2 * width > MOST_POSITIONS:
        size = f"images of {image_size} px in patches of {patch_size} px at width {width}"
        raise UserError(f"{path}: {size} are more than can be built; download the file again")
    return Size(width, depth, heads, hidden), patch_size, image_size


def flatten(params: Params) -> dict[str, Any]:
    """Returns the leaves of nested parameters by "outer/inner" names."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, np.ndarray]) -> Params:
    """The inverse of flatten."""
    return traverse_util.unflatten_dict(flat, sep="/")
