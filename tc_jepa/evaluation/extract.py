"""Writes the frozen features of a whole dataset to disk, in shards; a killed command resumes with the next shard.

A folder of features holds features.json (what was extracted, from what, by which encoder; the classes of all tasks; the
number of images of every split) and, for every split, files SPLIT-00000-of-00012.npz and so on: `images_per_shard`
images or fewer each, in the order of the data. The arrays of a shard have one row for each image:

  pooled   [n, D]     mean over patches           (where asked for)
  patches  [n, N, D]  row-major                   (where asked for)
  name     str [n]    file in the data, or SPLIT/INDEX where it has none
  LABELS   one for each of the data's label sets: int64 [n] class indices, or bool [n, classes]

numpy.load reads them with allow_pickle=False.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import hashlib
import json
from pathlib import Path
from typing import Any
import zipfile

import numpy as np
import tqdm

from tc_jepa.data.sources import Source
from tc_jepa.errors import UserError
from tc_jepa.evaluation.encoder import FrozenEncoder
from tc_jepa.evaluation.features import in_batches, Part, PATCHES
from tc_jepa.evaluation.rows import write_array, write_rows
from tc_jepa.storage.files import refuse_existing, replace_text, replacing
from tc_jepa.storage.partial import ALONE, partial_path, PartialFolder, Processes

ABOUT = "features.json"
KINDS = ("pooled", "patches")
RESERVED = (*KINDS, "name", "file")  # the last is a parameter of numpy.savez


def extract(
    encoder: FrozenEncoder,
    sources: Mapping[str, Source],
    output: Path,
    *,
    kinds: Sequence[str],
    dtype: str,
    images_per_shard: int,
    about: Mapping[str, Any],
    processes: Processes = ALONE,
) -> None:
    """Writes the features of every split of `sources` to the new folder `output`.

    Several `processes`, which all call it alike and see the same `output`, share the shards.

    The same call continues an interrupted one shard by shard (storage/partial.py). `kinds` are some of KINDS, `dtype`
    is float32 or float16. `about` describes the features; unfinished work with another description is refused. Raises
    UserError for that, for an existing output, and for features that are not finite (in float16 also if too large).
    """
    refuse_existing(output)
    for name in next(iter(sources.values())).tasks:
        if name in RESERVED:
            raise UserError(f"the label feature {name!r} has the name of an array of features; rename it in the data")
    about = {
        **about,
        "features": list(kinds),
        "dtype": dtype,
        "width": encoder.width,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "images_per_shard": images_per_shard,
        "splits": {split: len(source) for split, source in sources.items()},
        "classes": {name: list(task.classes) for name, task in next(iter(sources.values())).tasks.items()},
    }
    with PartialFolder(partial_path(output), about, processes) as partial:
        pieces = [
            (source, path, indices)
            for split, source in sources.items()
            for path, indices in shards(partial.data, split, len(source), images_per_shard).items()
        ]
        ours = processes.share(pieces)
        total, quiet = sum(len(indices) for _, _, indices in ours), None if processes.first else True
        with tqdm.tqdm(total=total, desc="features", unit="image", disable=quiet) as bar:
            for source, path, indices in ours:
                if not path.exists():
                    write_shard(path, encoder, Part(source, indices, kinds, ""), dtype)
                bar.update(len(indices))
        processes.wait("features: shards")
        if processes.first:
            partial.check_complete(path.name for _, path, _ in pieces)
            for path in partial.data.glob("*.tmp"):  # left by a kill
                path.unlink()
            replace_text(partial.data / ABOUT, json.dumps(about, indent=2) + "\n")
            partial.finish(output)
        processes.wait("features: output")


def check_kinds(names: Sequence[str]) -> None:
    """Raises UserError for no kind, for an unknown one, and for one given twice."""
    for name in names or [""]:
        if name not in KINDS or names.count(name) > 1:
            raise UserError(f"--features={','.join(names)}: give one or both of {', '.join(KINDS)}")


def digest(contents: Mapping[str, Any]) -> str:
    """A short hash of JSON, such as the fingerprints of an encoder's weights."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def shards(folder: Path, split: str, images: int, images_per_shard: int) -> dict[Path, range]:
    """The files of a split, with the indices of the images that each holds."""
    count = -(-images // images_per_shard)
    return {
        folder / f"{split}-{number:05d}-of-{count:05d}.npz": range(start, min(start + images_per_shard, images))
        for number, start in enumerate(range(0, images, images_per_shard))
    }


def write_shard(path: Path, encoder: FrozenEncoder, part: Part, dtype: str) -> None:
    """Writes a shard. Patches go to the file batch by batch; what else there is of an image is small."""
    kept: dict[str, list[np.ndarray]] = {kind: [] for kind in part.kinds if kind != PATCHES}

    def patches() -> Iterator[np.ndarray]:
        for _, arrays in in_batches({"": encoder}, part):
            stored = {kind: _stored(features, kind, dtype, path) for kind, features in arrays.items()}
            for kind, rows in kept.items():
                rows.append(stored[kind])
            if PATCHES in stored:
                yield stored[PATCHES]

    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        if PATCHES in part.kinds:
            write_rows(archive, PATCHES, len(part.indices), patches())
        else:
            collections.deque(patches(), maxlen=0)
        arrays = {kind: np.concatenate(rows) for kind, rows in kept.items()}
        for name, array in (arrays | _names_and_labels(part.source, part.indices)).items():
            write_array(archive, name, array)


def _stored(features: np.ndarray, kind: str, dtype: str, path: Path) -> np.ndarray:
    """Features in the type in which they are stored. UserError for one that it cannot hold."""
    with np.errstate(over="ignore"):  # refused below
        stored = features.astype(dtype)
    if not np.isfinite(stored).all():
        raise UserError(f"{path.name}: some {kind} features are not finite in {dtype}; give --dtype=float32")
    return stored


def _names_and_labels(source: Source, indices: Sequence[int]) -> dict[str, np.ndarray]:
    rows = [source.labels(index) for index in indices]
    names = np.array([source.file(index) for index in indices])
    return {"name": names} | {task: np.array([row[task] for row in rows]) for task in source.tasks}
