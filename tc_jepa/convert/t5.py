"""Reading T5 folders of Hugging Face as the configuration and parameters of models.text.t5.T5Encoder.

Training reads safetensors only. `convert` also reads pytorch_model.bin, with torch's weights_only reader, and writes
the encoder alone, in float32, into a folder that training and transformers open.
"""

from collections.abc import Collection, Mapping
import json
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from tc_jepa.convert import torch_files
from tc_jepa.convert.tensors import (
    check_shapes,
    CONFIG,
    INDEX,
    index_files,
    kernel,
    MOST_LAYERS,
    Place,
    read_json,
    read_tensors,
    SAME_MODEL,
    shapes,
    tensor_files,
    to_ours,
    to_theirs,
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
# Some published files lack these two keys; transformers' T5Config has the same defaults.
DEFAULTS = {"relative_attention_max_distance": 128, "feed_forward_proj": "relu"}
GATED = {"relu": False, "gated-gelu": True}

EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")  # one table under two names; a file has either or both
NOT_THE_ENCODER = ("decoder.", "lm_head.")


def load(folder: str | os.PathLike) -> tuple[T5Config, dict]:
    """Returns T5Encoder's configuration and parameters, nested float32 numpy arrays, from a T5 1.0 or 1.1 folder.

    The folder holds config.json and safetensors, whole or in shards; a decoder is not read. float16 and bfloat16
    become float32, as all parameters here: T5Encoder's `dtype` alone sets the type of products. Raises UserError where
    the folder, a file, a configuration key or an encoder tensor is missing, unexpected or unusable.
    """
    folder = _folder(folder)
    config, files = _config(folder / CONFIG), _without_decoder(_files(folder))
    places = encoder_places(config, files)
    return config, _params(read_tensors(files, shapes(places), folder, SAME_MODEL), places, folder)


def convert(source: str | os.PathLike, output: Path) -> None:
    """Writes a T5 folder's encoder, and vocabulary if any, into the empty folder `output`. UserError as for `load`."""
    source = _folder(source)
    if (source / WEIGHTS).is_file() or (source / INDEX).is_file():
        config, params = load(source)
    else:
        config, tensors = _config(source / CONFIG), _read_pickles(source)
        places = encoder_places(config, tensors)
        check_shapes(shapes(tensors), shapes(places), source, SAME_MODEL)
        params = _params(tensors, places, source)
    write(to_theirs(params, encoder_places(config)), output / WEIGHTS)
    values = read_json(source / CONFIG) | {"architectures": ["T5EncoderModel"], "dtype": "float32"}
    values.pop("torch_dtype", None)  # dtype's older name
    (output / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    if (source / VOCABULARY).is_file():
        shutil.copyfile(source / VOCABULARY, output / VOCABULARY)


def vocabulary(folder: str | os.PathLike) -> str:
    """Returns the path of the SentencePiece model in a T5 folder. Raises UserError where there is none."""
    path = _folder(folder) / VOCABULARY
    if not path.is_file():
        raise UserError(f"{folder} holds no {VOCABULARY}; download it from where the model was published")
    return str(path)


def check_vocabulary(config: T5Config, pieces: int, name: str) -> None:
    """Raises UserError where the vocabulary called `name` has more pieces than the model has embeddings.

    Fewer pieces are usual: the published models pad their tables, to 32,128 rows for 32,000 pieces.
    """
    if pieces > config.vocabulary_size:
        sizes = f"{pieces} pieces and the T5 model only {config.vocabulary_size} embeddings"
        raise UserError(f"vocabulary {name} has {sizes}; give the {VOCABULARY} that was published with the model")


def encoder_places(config: T5Config, names: Collection[str] = ()) -> dict[str, Place]:
    """Returns the places of all encoder tensors in a file that holds `names`: of EMBEDDINGS one is enough."""
    width, inner, hidden = config.width, config.heads * config.key_width, config.hidden
    block = {
        "0.layer_norm": Place((width,), ("norm1", "scale")),
        **{f"0.SelfAttention.{name}": kernel((inner, width), "attn", name) for name in ("q", "k", "v")},
        "0.SelfAttention.o": kernel((width, inner), "attn", "o"),
        "1.layer_norm": Place((width,), ("norm2", "scale")),
        "1.DenseReluDense.wo": kernel((width, hidden), "mlp", "wo"),
    }
    for name in ("wi_0", "wi_1") if config.gated else ("wi",):
        block[f"1.DenseReluDense.{name}"] = kernel((hidden, width), "mlp", name)
    tables = [name for name in EMBEDDINGS if name in names] or EMBEDDINGS[:1]
    places = {name: Place((config.vocabulary_size, width), ("words",)) for name in tables}
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    places[bias] = Place((config.buckets, config.heads), ("position_bias",))
    for i in range(config.depth):
        for name, place in block.items():
            places[f"encoder.block.{i}.layer.{name}.weight"] = place._replace(path=(f"blocks_{i}", *place.path))
    places["encoder.final_layer_norm.weight"] = Place((width,), ("norm", "scale"))
    return places


def _folder(folder: str | os.PathLike) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is not a folder; give the one into which a T5 model was downloaded")
    return Path(folder)


def _config(path: Path) -> T5Config:
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {CONFIG}; download all files of the T5 model")
    values = DEFAULTS | read_json(path)
    if values.get("model_type") != "t5":
        raise UserError(f"{path}: model_type is {values.get('model_type')!r}, not 't5'; give a T5 1.0 or 1.1 model")
    activation = values["feed_forward_proj"]
    if not isinstance(activation, str) or activation not in GATED:
        known = " or ".join(GATED)
        raise UserError(f"{path}: feed_forward_proj={activation!r} is not supported; give a model with {known}")
    fields = {}
    for field, key in CONFIG_KEYS.items():
        value, number = values.get(key), float if field == "epsilon" else int
        if type(value) is not number or not value > 0:
            raise UserError(f"{path}: {key} is {value!r}, not a positive {number.__name__}; download the file again")
        fields[field] = value
    if fields["depth"] > MOST_LAYERS:
        key, most = CONFIG_KEYS["depth"], f"at most {MOST_LAYERS} are built"
        raise UserError(f"{path}: {key} is {fields['depth']}; {most}, so download the file again")
    return T5Config(**fields, gated=GATED[activation])


def _files(folder: Path) -> dict[str, Path]:
    whole_or_index = (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()
    if not whole_or_index and any(folder.glob("pytorch_model*.bin")):
        fix = f"convert it first: python -m launch.convert --from=t5 --input={folder} --output=DIR"
        raise UserError(f"{folder} holds its weights only as a pickle; {fix}")
    return tensor_files(folder)


def _without_decoder(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tensors.items() if not str(name).startswith(NOT_THE_ENCODER)}


def _params(tensors: Mapping[str, np.ndarray], places: Mapping[str, Place], folder: Path) -> dict:
    """Returns the nested parameters from all tensors of the encoder, whose shapes are checked."""
    tables = [tensors[name] for name in EMBEDDINGS if name in tensors]
    if len(tables) > 1 and not np.array_equal(*tables):
        raise UserError(f"{folder}: {' and '.join(EMBEDDINGS)} differ, but a T5 has one table; {SAME_MODEL}")
    return to_ours(tensors, places)


def _read_pickles(folder: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of pytorch_model.bin, whole or in shards, as float32 without those of a decoder."""
    whole, index = folder / PICKLE, folder / PICKLE_INDEX
    if not whole.is_file() and not index.is_file():
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {PICKLE}, whole or in shards; download the weights")
    tensors = {}
    for path in [whole] if whole.is_file() else sorted(set(index_files(index).values())):
        tensors |= torch_files.arrays(_without_decoder(torch_files.load(path)), str(path))
    return tensors
