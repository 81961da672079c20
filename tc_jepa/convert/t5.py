"""T5 model folders as Hugging Face publishes them -> the configuration and parameters of models.t5.T5Encoder.

Weights are read from safetensors only: a pickle would run whatever its author put in.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from flax import traverse_util
import ml_dtypes  # noqa: F401 - safetensors reads bfloat16 into numpy only once this has taught numpy the type
import numpy as np
from safetensors import safe_open, SafetensorError

from tc_jepa.errors import UserError
from tc_jepa.models.t5 import T5Config

CONFIG, WEIGHTS, INDEX, VOCABULARY = "config.json", "model.safetensors", "model.safetensors.index.json", "spiece.model"

CONFIG_KEYS = {
    "vocabulary_size": "vocab_size",
    "width": "d_model",
    "key_width": "d_kv",
    "hidden": "d_ff",
    "depth": "num_layers",
    "heads": "num_heads",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "epsilon": "layer_norm_epsilon",
}
# Some published files are older than these two keys; transformers' T5Config has the same defaults.
DEFAULTS = {"relative_attention_max_distance": 128, "feed_forward_proj": "relu"}
GATED = {"relu": False, "gated-gelu": True}

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one table under two names; a file has either or both
NOT_THE_ENCODER = ("decoder.", "lm_head.")
SAME_MODEL = f"take {CONFIG} and weights from one and the same T5 model"
FLOATS = ("F32", "F16", "BF16")


class Place(NamedTuple):
    """Where a tensor goes: its path in T5Encoder's parameters, and the shape that it must have in the file."""

    path: tuple[str, ...]
    shape: tuple[int, ...]


def load(folder: str | os.PathLike) -> tuple[T5Config, dict]:
    """T5Encoder's configuration and parameters, nested dicts of float32 numpy arrays, from a T5 1.0 or 1.1 folder.

    The folder holds config.json and safetensors, whole or in shards; a decoder in them is not read. Weights stored in
    float16 or bfloat16 become float32, which loses nothing: parameters are float32 throughout this project, and
    T5Encoder's `dtype` alone decides in what they are multiplied, not the way a file was stored. UserError where the
    folder, a file, a configuration key or an encoder tensor is missing, unexpected or unusable.
    """
    folder = _folder(folder)
    config = _config(folder / CONFIG)
    places, files = encoder_tensors(config), _files(folder)
    names = [name for name in files if not name.startswith(NOT_THE_ENCODER)]
    for name in names:
        if name not in places:
            raise UserError(f"{files[name]} holds tensor {name}, for which {CONFIG} has no place; {SAME_MODEL}")
    found = {places[name].path for name in names}
    for name, place in places.items():
        if place.path not in found:
            raise UserError(f"{folder} holds no tensor {name}; {SAME_MODEL}")

    flat = {}
    for name, array in _read(names, files, places):
        path = places[name].path
        if path in flat and not np.array_equal(flat[path], array):
            raise UserError(f"{folder}: {' and '.join(EMBEDDINGS)} differ, T5 has one table; {SAME_MODEL}")
        flat[path] = array
    return config, traverse_util.unflatten_dict(flat)


def vocabulary(folder: str | os.PathLike) -> str:
    """Path of the SentencePiece model in a T5 folder; UserError where there is none."""
    path = _folder(folder) / VOCABULARY
    if not path.is_file():
        raise UserError(f"{folder} holds no {VOCABULARY}; download it from where the model was published")
    return str(path)


def check_vocabulary(config: T5Config, pieces: int, name: str) -> None:
    """UserError where the vocabulary called `name` has more pieces than the model has embeddings.

    Fewer are usual: the published models pad their tables, 32,128 rows for 32,000 pieces.
    """
    if pieces > config.vocabulary_size:
        raise UserError(
            f"vocabulary {name} has {pieces} pieces, the T5 model embeds only {config.vocabulary_size}; "
            f"give the {VOCABULARY} that was published with the model"
        )


def encoder_tensors(config: T5Config) -> dict[str, Place]:
    """Every encoder tensor by its name in the file, where matrices are (outputs, inputs), the transpose of ours."""
    width, inner, hidden = config.width, config.heads * config.key_width, config.hidden
    block = {
        "0.layer_norm": Place(("norm1", "scale"), (width,)),
        "0.SelfAttention.q": Place(("attn", "q", "kernel"), (inner, width)),
        "0.SelfAttention.k": Place(("attn", "k", "kernel"), (inner, width)),
        "0.SelfAttention.v": Place(("attn", "v", "kernel"), (inner, width)),
        "0.SelfAttention.o": Place(("attn", "o", "kernel"), (width, inner)),
        "1.layer_norm": Place(("norm2", "scale"), (width,)),
        "1.DenseReluDense.wo": Place(("mlp", "wo", "kernel"), (width, hidden)),
    }
    for name in ("wi_0", "wi_1") if config.gated else ("wi",):
        block[f"1.DenseReluDense.{name}"] = Place(("mlp", name, "kernel"), (hidden, width))
    places = {name: Place(("words",), (config.vocabulary_size, width)) for name in EMBEDDINGS}
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    places[bias] = Place(("position_bias",), (config.buckets, config.heads))
    for i in range(config.depth):
        for name, (path, shape) in block.items():
            places[f"encoder.block.{i}.layer.{name}.weight"] = Place((f"blocks_{i}", *path), shape)
    places["encoder.final_layer_norm.weight"] = Place(("norm", "scale"), (width,))
    return places


def _folder(folder: str | os.PathLike) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder; give the one into which a T5 model was downloaded")
    return Path(folder)


def _config(path: Path) -> T5Config:
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {CONFIG}; download all files of the T5 model")
    values = DEFAULTS | _json(path)
    if values.get("model_type") != "t5":
        raise UserError(f"{path}: model_type is {values.get('model_type')!r}, not 't5'; give a T5 1.0 or 1.1 model")
    activation = values["feed_forward_proj"]
    if activation not in GATED:
        raise UserError(
            f"{path}: feed_forward_proj={activation!r} is not supported; give a model with {_one_of(GATED)}"
        )
    fields = {}
    for field, key in CONFIG_KEYS.items():
        value, number = values.get(key), float if field == "epsilon" else int
        if type(value) is not number or not value > 0:
            raise UserError(f"{path}: {key} is {value!r}, not a positive {number.__name__}; download the file anew")
        fields[field] = value
    return T5Config(**fields, gated=GATED[activation])


def _files(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor. The whole file goes before the shards, as in transformers."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file():
        with _opened(whole) as file:
            return dict.fromkeys(file.keys(), whole)
    if index.is_file():
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index} holds no weight_map; download it anew")
        return {name: folder / shard for name, shard in shards.items()}
    if any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} holds its weights as a pickle only, which is never opened here; where transformers is installed "
            f'and you trust the file, convert it: python -c "import transformers; transformers.T5EncoderModel.'
            f"from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; download the model's safetensors weights")


def _read(names: list[str], files: Mapping[str, Path], places: Mapping[str, Place]) -> Iterator[tuple[str, np.ndarray]]:
    """Each named tensor as our parameters hold it, file by file; nothing else is read."""
    for path in dict.fromkeys(files[name] for name in names):
        with _opened(path) as file:
            for name in (held for held in names if files[held] == path):
                stored, place = file.get_slice(name), places[name]
                shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
                if shape != place.shape:
                    raise UserError(
                        f"{path}: tensor {name} has shape {shape}, {CONFIG} asks for {place.shape}; {SAME_MODEL}"
                    )
                if dtype not in FLOATS:
                    raise UserError(f"{path}: tensor {name} is stored as {dtype}; give a model in {_one_of(FLOATS)}")
                array = file.get_tensor(name).astype(np.float32)
                yield name, array.T if place.path[-1] == "kernel" else array


@contextlib.contextmanager
def _opened(path: Path):
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); download it anew") from error


def _json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); download it anew") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object; download it anew")
    return values


def _one_of(choices) -> str:
    return " or ".join(choices)
