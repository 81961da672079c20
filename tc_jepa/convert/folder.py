"""This project's format of a converted encoder: a folder that later versions will still read.

config.json: {"format": "tc_jepa_encoder", "version": 1, "origin": where the weights are from, in English,
"encoder": {"width", "depth", "heads", "hidden", "patch_size", "image_size", "stored_positions"}, "predictor": bool}.
Sizes are integers: width and hidden in channels, patch_size and image_size in pixels. The encoder was trained on square
images of side image_size.

encoder.safetensors: float32 tensors named by their path in VisionTransformer's parameters, such as
blocks_0/attn/qkv/kernel; kernels are [inputs, outputs]. Positions are the sine-cosine ones of the trained grid, or with
stored_positions the tensor `positions` [N, width]. predictor.safetensors exists where "predictor" is true and holds
Predictor's parameters in the same way.
"""

import json
from pathlib import Path

from flax import traverse_util
import numpy as np

from tc_jepa.convert import tensors
from tc_jepa.convert.weights import abstract_params, EncoderWeights, square_encoder
from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.models.vit import Size

FORMAT, VERSION = "tc_jepa_encoder", 1
ENCODER, PREDICTOR = "encoder.safetensors", "predictor.safetensors"
SIZES = ("width", "depth", "heads", "hidden", "patch_size", "image_size")


def save(weights: EncoderWeights, folder: Path, origin: str) -> None:
    """Writes weights into an existing empty folder."""
    encoder, size = weights.encoder, weights.encoder.size
    described = {
        "width": size.width,
        "depth": size.depth,
        "heads": size.heads,
        "hidden": size.hidden,
        "patch_size": encoder.patch_size,
        "image_size": weights.image_size,
        "stored_positions": encoder.stored_positions,
    }
    config = {"format": FORMAT, "version": VERSION, "origin": origin, "encoder": described}
    config["predictor"] = weights.predictor is not None
    (folder / tensors.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors.write(flatten(weights.params), folder / ENCODER)
    if weights.predictor is not None:
        tensors.write(flatten(weights.predictor), folder / PREDICTOR)


def load(folder: Path, *, predictor: bool = False) -> EncoderWeights:
    """Returns the weights in a folder, with the predictor if asked for.

    Raises UserError where a file, a key of config.json or a tensor is missing, unexpected or unusable.
    """
    path = folder / tensors.CONFIG
    config = tensors.read_json(path)
    if config.get("format") != FORMAT or config.get("version") != VERSION:
        raise UserError(
            f"{path}: format {config.get('format')!r}, version {config.get('version')!r}; this code reads {FORMAT!r}, "
            f"version {VERSION}"
        )
    described = config.get("encoder")
    if not isinstance(described, dict) or type(described.get("stored_positions")) is not bool:
        raise UserError(f"{path} does not describe the encoder; convert it again")
    sizes = positive_integers(described, SIZES, path)
    check_sizes(sizes["width"], sizes["heads"], sizes["patch_size"], sizes["image_size"], path)
    size = Size(sizes["width"], sizes["depth"], sizes["heads"], sizes["hidden"])
    encoder = square_encoder(size, sizes["patch_size"], sizes["image_size"], described["stored_positions"])
    expected = {name: leaf.shape for name, leaf in _named(abstract_params(encoder, sizes["image_size"])).items()}
    found = tensors.read_tensors(tensors.tensors_in(folder / ENCODER), expected, folder / ENCODER)
    return EncoderWeights(
        encoder, unflatten(found), sizes["image_size"], _load_predictor(folder, config) if predictor else None
    )


def positive_integers(values: dict, keys: tuple[str, ...], path: Path) -> dict[str, int]:
    """Returns the values of these keys. Raises UserError for the first that is not a positive integer."""
    for key in keys:
        if type(values.get(key)) is not int or values[key] < 1:
            raise UserError(f"{path}: {key} is {values.get(key)!r}, not a positive integer")
    return {key: values[key] for key in keys}


def check_sizes(width: int, heads: int, patch_size: int, image_size: int, where: object) -> None:
    """Raises UserError where no encoder can have these sizes."""
    if width % heads:
        raise UserError(f"{where}: {heads} heads do not divide the width, {width}")
    if image_size % patch_size:
        raise UserError(f"{where}: patches of {patch_size} px do not divide images of {image_size} px")


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Returns nested parameters as host arrays by "outer/inner" names."""
    return {name: np.asarray(array) for name, array in _named(params).items()}


def unflatten(flat: dict[str, np.ndarray]) -> Params:
    """The inverse of flatten."""
    return traverse_util.unflatten_dict(flat, sep="/")


def _named(params: Params) -> dict:
    return traverse_util.flatten_dict(params, sep="/")


def _load_predictor(folder: Path, config: dict) -> Params | None:
    if not config.get("predictor"):
        return None
    path = folder / PREDICTOR
    files = tensors.tensors_in(path)
    with tensors.open_tensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in files}
    return unflatten(tensors.read_tensors(files, shapes, path))
