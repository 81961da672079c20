"""The JSON and safetensors of weight folders. Whatever is wrong with one is a UserError that names file and tensor."""

from collections.abc import Iterable, Mapping
import contextlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - safetensors reads bfloat16 into numpy only once this has taught numpy the type
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from tc_jepa.errors import UserError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
TOLD = 4  # names of a kind in one message; a wrong file may have hundreds

Shapes = Mapping[str, tuple[int, ...]]


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); download it anew") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object; download it anew")
    return values


@contextlib.contextmanager
def opened(path: Path):
    """A safetensors file, open for reading."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); download it anew") from error


def files(folder: Path) -> dict[str, Path]:
    """Which file of a folder holds which tensor. The whole file goes before the shards, as in transformers."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file():
        return held(whole)
    if not index.is_file():
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; download the model's safetensors weights")
    return shards(index)


def held(path: Path) -> dict[str, Path]:
    """The names of one file's tensors, each with the file."""
    with opened(path) as file:
        return dict.fromkeys(file.keys(), path)


def shards(index: Path) -> dict[str, Path]:
    """Which file holds which tensor, from the index beside the files."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} holds no weight_map; download it anew")
    for name in set(places.values()):
        if Path(name).name != name or name == "..":
            raise UserError(f"{index} names {name!r}, which is no file beside it; download it anew")
    return {tensor: index.with_name(name) for tensor, name in places.items()}


def read(files: Mapping[str, Path], expected: Shapes, where: str) -> dict[str, np.ndarray]:
    """All tensors as float32, which must be the expected ones; `where` names folder or file in messages."""
    tensors: dict[str, np.ndarray] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in dict.fromkeys(files.values()):
        with opened(path) as file:
            for name in (name for name, holder in files.items() if holder == path):
                stored = file.get_slice(name)
                if stored.get_dtype() not in FLOATS:
                    raise UserError(
                        f"{path}: tensor {name} is stored as {stored.get_dtype()}; {one_of(FLOATS)} is read"
                    )
                shapes[name] = tuple(stored.get_shape())
                if shapes[name] == expected.get(name):
                    tensors[name] = file.get_tensor(name).astype(np.float32, copy=False)
    check(shapes, expected, where)
    return tensors


def check(found: Shapes, expected: Shapes, where: str) -> None:
    """UserError naming the tensors that are missing, unexpected or of another shape."""
    common = sorted(found.keys() & expected.keys())
    kinds = {
        "no": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshaped": [
            f"{name} {found[name]}, not {expected[name]}" for name in common if found[name] != expected[name]
        ],
    }
    wrong = [f"{kind} {', '.join(some(names))}" for kind, names in kinds.items() if names]
    if wrong:
        raise UserError(f"{where} does not hold the weights of this network: {'; '.join(wrong)}")


def write(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Float32 tensors into a safetensors file, marked as transformers asks for it."""
    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives; safetensors lets none but the owner read
    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    save_file(arrays, path, {"format": "pt"})
    path.chmod(mode)


def some(names: list[str]) -> list[str]:
    """The first names, and how many more there are."""
    return names[:TOLD] + [f"{len(names) - TOLD} more"] * (len(names) > TOLD)


def one_of(choices: Iterable[str]) -> str:
    return " or ".join(choices)
