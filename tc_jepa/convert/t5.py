"""T5 model folders as Hugging Face publishes them -> the configuration and parameters of models.t5.T5Encoder.

Training reads safetensors only. `convert` also reads pytorch_model.bin, through torch's weights_only reader, and writes
the encoder alone into a folder that training and transformers open.
"""

from collections.abc import Iterable, Iterator, Mapping
import json
import os
from pathlib import Path
import shutil
from typing import NamedTuple

from flax import traverse_util
import numpy as np

from tc_jepa.convert import torch_files
from tc_jepa.convert.tensors import (
    CONFIG,
    files,
    FLOATS,
    INDEX,
    one_of,
    opened,
    read_json,
    shards,
    WEIGHTS,
    write,
)
from tc_jepa.errors import UserError
from tc_jepa.models.text.t5 import T5Config

VOCABULARY = "spiece.model"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

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
    places, held = encoder_tensors(config), _files(folder)
    names = _encoder_names(held, places)
    return config, _params(folder, _read(names, held, places), places)


def convert(source: str | os.PathLike, output: Path) -> None:
    """Writes the encoder of a T5 folder into the empty folder `output`, with the vocabulary where there is one.

    As float32 safetensors and config.json. UserError as `load`.
    """
    source = _folder(source)
    if (source / WEIGHTS).is_file() or (source / INDEX).is_file():
        config, params = load(source)
    else:
        config = _config(source / CONFIG)
        places = encoder_tensors(config)
        params = _params(source, _read_pickles(source, places), places)
    flat = traverse_util.flatten_dict(params)
    places = {name: place for name, place in encoder_tensors(config).items() if name != EMBEDDINGS[1]}
    write({name: _turned(place, flat[place.path]) for name, place in places.items()}, output / WEIGHTS)
    values = read_json(source / CONFIG) | {"architectures": ["T5EncoderModel"], "dtype": "float32"}
    values.pop("torch_dtype", None)  # dtype's older name
    (output / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    if (source / VOCABULARY).is_file():
        shutil.copyfile(source / VOCABULARY, output / VOCABULARY)


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
    values = DEFAULTS | read_json(path)
    if values.get("model_type") != "t5":
        raise UserError(f"{path}: model_type is {values.get('model_type')!r}, not 't5'; give a T5 1.0 or 1.1 model")
    activation = values["feed_forward_proj"]
    if activation not in GATED:
        raise UserError(f"{path}: feed_forward_proj={activation!r} is not supported; give a model with {one_of(GATED)}")
    fields = {}
    for field, key in CONFIG_KEYS.items():
        value, number = values.get(key), float if field == "epsilon" else int
        if type(value) is not number or not value > 0:
            raise UserError(f"{path}: {key} is {value!r}, not a positive {number.__name__}; download the file anew")
        fields[field] = value
    return T5Config(**fields, gated=GATED[activation])


def _files(folder: Path) -> dict[str, Path]:
    whole_or_index = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    if not whole_or_index and any(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} holds its weights as a pickle only; convert it first: python -m launch.convert --from=t5 "
            f"--input={folder} --output=DIR"
        )
    return files(folder)


def _encoder_names(held: Mapping[str, Path], places: Mapping[str, Place]) -> list[str]:
    names = [name for name in held if not name.startswith(NOT_THE_ENCODER)]
    for name in names:
        if name not in places:
            raise UserError(f"{held[name]} holds tensor {name}, for which {CONFIG} has no place; {SAME_MODEL}")
    return names


def _params(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], places: Mapping[str, Place]) -> dict:
    """Nested parameters from all of the encoder's tensors, each as our parameters hold it."""
    flat = {}
    for name, array in tensors:
        path = places[name].path
        if path in flat and not np.array_equal(flat[path], array):
            raise UserError(f"{folder}: {' and '.join(EMBEDDINGS)} differ, T5 has one table; {SAME_MODEL}")
        flat[path] = array
    for name, place in places.items():
        if place.path not in flat:
            raise UserError(f"{folder} holds no tensor {name}; {SAME_MODEL}")
    return traverse_util.unflatten_dict(flat)


def _read(names: list[str], held: Mapping[str, Path], places: Mapping[str, Place]) -> Iterator[tuple[str, np.ndarray]]:
    """Each named tensor as our parameters hold it, file by file; nothing else is read."""
    for path in dict.fromkeys(held[name] for name in names):
        with opened(path) as file:
            for name in (name for name in names if held[name] == path):
                stored = file.get_slice(name)
                _check_shape(name, tuple(stored.get_shape()), places[name], path)
                if stored.get_dtype() not in FLOATS:
                    raise UserError(
                        f"{path}: tensor {name} is stored as {stored.get_dtype()}; give a model in {one_of(FLOATS)}"
                    )
                yield name, _turned(places[name], file.get_tensor(name).astype(np.float32))


def _read_pickles(folder: Path, places: Mapping[str, Place]) -> Iterator[tuple[str, np.ndarray]]:
    """The same from pytorch_model.bin, whole or in shards."""
    whole, index = folder / PICKLE, folder / PICKLE_INDEX
    if not whole.is_file() and not index.is_file():
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {PICKLE}, whole or in shards; download the weights")
    for path in [whole] if whole.is_file() else sorted(set(shards(index).values())):
        tensors = torch_files.load(path)
        names = _encoder_names(dict.fromkeys(tensors, path), places)
        for name, array in torch_files.arrays({name: tensors[name] for name in names}, str(path)).items():
            _check_shape(name, array.shape, places[name], path)
            yield name, _turned(places[name], array)


def _check_shape(name: str, shape: tuple[int, ...], place: Place, path: Path) -> None:
    if shape != place.shape:
        raise UserError(f"{path}: tensor {name} has shape {shape}, {CONFIG} asks for {place.shape}; {SAME_MODEL}")


def _turned(place: Place, array: np.ndarray) -> np.ndarray:
    """A file's tensor as our parameters hold it, or back."""
    return array.T if place.path[-1] == "kernel" else array
