"""Reading and writing I-JEPA folders of Hugging Face's transformers (IJepaModel).

The tensors are the official ones under other names, with queries, keys and values apart. Positions may be any.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np

from tc_jepa.convert import ijepa, tensors
from tc_jepa.convert.folder import named_sizes, read_sizes
from tc_jepa.convert.tensors import SAME_MODEL
from tc_jepa.convert.weights import EncoderWeights
from tc_jepa.errors import UserError
from tc_jepa.models import layers

MODEL_TYPE = "ijepa"
PREPROCESSOR = "preprocessor_config.json"
INTEGERS = (  # in the order of folder.SIZES
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "image_size",
)
# What this project's encoder computes; all published models have these values.
FIXED = {"num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": layers.LAYER_NORM_EPSILON, "qkv_bias": True}

OUTSIDE_BLOCKS = {
    ijepa.POSITIONS: ("embeddings.position_embeddings",),
    "patch_embed.proj.weight": ("embeddings.patch_embeddings.projection.weight",),
    "patch_embed.proj.bias": ("embeddings.patch_embeddings.projection.bias",),
    "norm.weight": ("layernorm.weight",),
    "norm.bias": ("layernorm.bias",),
}
IN_BLOCK = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}


def tensor_names(depth: int) -> dict[str, tuple[str, ...]]:
    """Returns, by official name, the one or three tensors that are concatenated along axis 0 in the official one."""
    found = dict(OUTSIDE_BLOCKS)
    for i in range(depth):
        for official, theirs in IN_BLOCK.items():
            for kind in ("weight", "bias"):
                found[f"blocks.{i}.{official}.{kind}"] = tuple(f"encoder.layer.{i}.{name}.{kind}" for name in theirs)
    return found


def load(folder: Path) -> EncoderWeights:
    """Returns the weights in a folder. UserError for a missing, unexpected or unusable file, config key or tensor."""
    path = folder / tensors.CONFIG
    config = tensors.read_json(path)
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{path}: model_type is {config.get('model_type')!r}, not {MODEL_TYPE!r}; give another")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{path}: {key} is {config[key]!r}; give a model with {value!r}")
    size, patch_size, image_size = read_sizes(config, INTEGERS, path)
    official = tensors.shapes(ijepa.encoder_places(size, patch_size, (image_size // patch_size) ** 2))
    parts = tensor_names(size.depth)
    expected = {
        name: (official[key][0] // len(theirs), *official[key][1:]) for key, theirs in parts.items() for name in theirs
    }
    found = tensors.read_tensors(tensors.tensor_files(folder), expected, folder, SAME_MODEL)
    joined = {key: np.concatenate([found[name] for name in theirs]) for key, theirs in parts.items()}
    return ijepa.from_official(joined, size, patch_size, image_size)


def save(weights: EncoderWeights, folder: Path) -> None:
    """Writes config.json, model.safetensors and preprocessor_config.json into an existing empty folder."""
    official, parts = ijepa.to_official(weights), tensor_names(weights.encoder.size.depth)
    split = {}
    for key, theirs in parts.items():
        split |= zip(theirs, np.split(official[key], len(theirs)), strict=True)
    tensors.write(split, folder / tensors.WEIGHTS)
    for name, values in ((tensors.CONFIG, _config(weights)), (PREPROCESSOR, preprocessor(weights.image_size))):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def _config(weights: EncoderWeights) -> Mapping[str, Any]:
    return {
        "architectures": ["IJepaModel"],
        "model_type": MODEL_TYPE,
        "dtype": "float32",
        **named_sizes(weights, INTEGERS),
        **FIXED,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "initializer_range": layers.OFFICIAL_STD,
    }


def preprocessor(image_size: int) -> Mapping[str, Any]:
    """Returns transforms.resize_and_centre_crop and layers.normalise_images as a preprocessor_config.json.

    BitImageProcessor resizes the shorter side and crops the centre; ViTImageProcessor would distort. One difference
    remains: this project shrinks by area, for which the nearest there is bilinear with antialiasing (PIL's filter 2).
    """
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(layers.IMAGENET_MEAN),
        "image_std": list(layers.IMAGENET_STD),
    }
