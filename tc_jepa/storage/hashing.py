"""Hashes that say whether two files, or two sets of parameters, are the same."""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from flax import traverse_util
import numpy as np


def file_sha256(path: str) -> str:
    """Returns the sha256 of a file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def parameters_sha256(config: Any, params: Mapping[str, Any]) -> str:
    """Returns the sha256 of a network: its settings, a dataclass, and its parameters as float32.

    It is the same for every file format that the parameters can be stored in.
    """
    state = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, array in sorted(traverse_util.flatten_dict(params).items()):
        state.update(f"{'/'.join(path)} {array.shape}".encode())
        state.update(np.ascontiguousarray(array, np.float32))
    return state.hexdigest()
