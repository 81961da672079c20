"""JSON and safetensors of weight folders, and the places of tensors in our parameters. Errors name file and tensor."""

from collections.abc import Callable, Mapping
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util
import ml_dtypes  # noqa: F401 - its import registers the bfloat16 with numpy that safetensors reads
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.numpy import save_file

from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.storage.reading import check_regular, lfs_reason_of, read_object

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
SAME_MODEL = f"take {CONFIG} and the weights from the same model"
MOST_LAYERS = 1000  # that a config.json may ask for; each costs time before any weight is read
LISTED = 4  # names of a kind in one message; a wrong file may have hundreds

Shapes = Mapping[str, tuple[int, ...]]


class Place(NamedTuple):
    """A tensor of a file: its shape there, the path of its parameter, and the maps of the array to ours and back."""

    shape: tuple[int, ...]
    path: tuple[str, ...]
    ours: Callable[[np.ndarray], np.ndarray] = np.asarray
    theirs: Callable[[np.ndarray], np.ndarray] = np.asarray


def kernel(shape: tuple[int, int], *path: str) -> Place:
    """Returns the place of a matrix, which torch stores as [outputs, inputs], the transpose of a parameter."""
    return Place(shape, (*path, "kernel"), np.transpose, np.transpose)


def shapes(tensors: Mapping[str, np.ndarray | Place]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def to_ours(tensors: Mapping[str, np.ndarray], places: Mapping[str, Place]) -> Params:
    """Returns the tensors that `places` name as nested parameters."""
    return traverse_util.unflatten_dict({place.path: place.ours(tensors[name]) for name, place in places.items()})


def to_theirs(params: Params, places: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """Returns nested parameters by the names of `places`. Raises ValueError for a parameter without a place."""
    flat = traverse_util.flatten_dict(params)
    nameless = flat.keys() - {place.path for place in places.values()}
    if nameless:
        raise ValueError(f"no place for {', '.join(sorted('/'.join(path) for path in nameless))}")
    return {name: place.theirs(np.asarray(flat[place.path])) for name, place in places.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises UserError for anything else."""
    return read_object(path, "download it again")


@contextlib.contextmanager
def open_tensors(path: Path):
    """A context manager that opens a safetensors file. Errors while it is read are UserErrors that name it."""
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        reason = lfs_reason_of(path) or "download it again"
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}); {reason}") from error


def tensor_files(folder: Path) -> dict[str, Path]:
    """Returns the file of a folder that holds each tensor, by the tensor's name.

    A whole file is preferred to shards, as transformers does. Raises UserError where there is neither.
    """
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file():
        return tensors_in(whole)
    if not index.is_file():
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}; download the model's safetensors weights")
    return index_files(index)


def tensors_in(path: Path) -> dict[str, Path]:
    """Returns the file itself by the name of each tensor in it."""
    with open_tensors(path) as file:
        return dict.fromkeys(file.keys(), path)


def index_files(index: Path) -> dict[str, Path]:
    """Returns the file that holds each tensor, from an index beside the files. UserError for files elsewhere."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} holds no weight_map; download it again")
    for name in set(places.values()):
        if Path(name).name != name or name == "..":
            raise UserError(f"{index} names {name!r}, which is not a file beside it; download it again")
    return {tensor: index.with_name(name) for tensor, name in places.items()}


def read_tensors(
    files: Mapping[str, Path], expected: Shapes | None, where: object, advice: str = ""
) -> dict[str, np.ndarray]:
    """Returns the tensors in `files`, by name, as float32 arrays. `expected` None accepts any names and shapes.

    float16 and bfloat16 become float32, which loses nothing. Raises UserError for other types, and as `check_shapes`.
    """
    tensors: dict[str, np.ndarray] = {}
    found: dict[str, tuple[int, ...]] = {}
    for path in dict.fromkeys(files.values()):
        with open_tensors(path) as file:
            for name in (name for name, holder in files.items() if holder == path):
                stored = file.get_slice(name)
                if (kind := stored.get_dtype()) not in FLOATS:
                    raise UserError(f"{path}: tensor {name} is stored as {kind}; give a model in {' or '.join(FLOATS)}")
                found[name] = tuple(stored.get_shape())
                if expected is None or found[name] == expected.get(name):
                    tensors[name] = file.get_tensor(name).astype(np.float32, copy=False)
    check_shapes(found, found if expected is None else expected, where, advice)
    return tensors


def check_shapes(found: Shapes, expected: Shapes, where: object, advice: str = "") -> None:
    """Raises UserError that names `where`, the tensors that are missing, unexpected or misshaped, and `advice`."""
    common = sorted(found.keys() & expected.keys())
    kinds = {
        "no": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshaped": [
            f"{name} {found[name]}, not {expected[name]}" for name in common if found[name] != expected[name]
        ],
    }
    wrong = [f"{kind} {', '.join(first_names(names))}" for kind, names in kinds.items() if names]
    if wrong:
        reasons = "; ".join(wrong + [advice] * bool(advice))
        raise UserError(f"{where} does not hold the weights of this network: {reasons}")


def write(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes tensors as float32 into a safetensors file, with the metadata that transformers requires."""
    path.touch()
    mode = path.stat().st_mode  # from the user's umask; safetensors lets only the owner read
    arrays = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    save_file(arrays, path, {"format": "pt"})
    path.chmod(mode)


def first_names(names: list[str]) -> list[str]:
    """Returns the first names and how many more there are."""
    return names[:LISTED] + [f"{len(names) - LISTED} more"] * (len(names) > LISTED)
