"""Frozen features of chosen images, computed once for all encoders and kept on disk while an evaluation runs.

The folder is a storage.partial.PartialFolder: an evaluation that was killed finds the finished shards in it again. A
shard has the features of a few batches of images of a part, by one encoder. Several processes share the folder: each
computes some of the shards, and all read all of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
import zipfile

import jax
import numpy as np
import tqdm

from tc_jepa.data.sources import Captioned
from tc_jepa.distributed.processes import is_first, wait_for_all
from tc_jepa.errors import UserError
from tc_jepa.evaluation.encoder import FrozenEncoder, read_images
from tc_jepa.evaluation.rows import mapped, Rows, write_array, write_rows
from tc_jepa.storage.files import replacing
from tc_jepa.storage.partial import DATA, PartialFolder

IMAGES_PER_SHARD = {"pooled": 2048, "last_four": 2048, "patches": 256}  # by kind, about: whole batches
JUDGED = "judged"  # what an encoder without a prefix is called on disk
NOT_FINITE = "the encoder's features are not finite: its training diverged; take an earlier step"

PATCHES = "patches"
# By kind: "pooled" float32 [N, D], "last_four" [N, 4 D], and as Rows "patches" [N, P, D].
Arrays = dict[str, np.ndarray | Rows]


class Part(NamedTuple):
    """Images of a source, and which kinds of their features are wanted."""

    source: Captioned
    indices: Sequence[int]
    kinds: Sequence[str]
    name: str  # on disk
    whole: bool = False  # as in encoder.read_images
    views: int = 0  # of a source of Views: as many of each image


class FeatureStore:
    """Reads features, through `folder` if it is given; otherwise they are computed at each reading.

    `about` describes the features, in JSON's types. Raises UserError for a folder with unfinished work of another
    description, with anything else in it, or in use.
    """

    def __init__(self, folder: Path | None = None, about: Mapping[str, Any] | None = None):
        self._folder = None if folder is None else folder / DATA
        self._partial = None
        if folder is not None:
            if is_first():
                self._partial = PartialFolder(folder, about or {})
            wait_for_all("features: folder")

    def close(self) -> None:
        """Removes the folder."""
        if self._folder is None:
            return
        wait_for_all("features: read")
        if self._partial is not None:
            self._partial.discard()

    def fill(self, encoders: Mapping[str, FrozenEncoder], part: Part) -> None:
        """Computes the missing shards of these encoders, reading each image once for all of them.

        Raises UserError for a feature that is not finite. Does nothing without a folder.
        """
        if self._folder is None:
            return
        shards = _shards(encoders, part)[jax.process_index() :: jax.process_count()]
        total = sum(map(len, shards))
        quiet = None if is_first() else True
        with tqdm.tqdm(total=total, desc=f"features, {part.name}", unit="image", disable=quiet) as bar:
            for shard in shards:
                paths = {name: self._path(part, name, shard) for name in encoders}
                missing = {name: encoders[name] for name, path in paths.items() if not path.exists()}
                chunk = part._replace(indices=part.indices[shard.start : shard.stop])
                for name, arrays in _compute(missing, chunk):
                    save(paths[name], arrays)
                bar.update(len(shard))
        wait_for_all(f"features: {part.name}")

    def read(self, encoders: Mapping[str, FrozenEncoder], part: Part) -> dict[str, Arrays]:
        """Each encoder's features of the part's images, in their order, by the encoder's name.

        An encoder without blocks has no "last_four". Raises UserError for a feature that is not finite.
        """
        if self._folder is None:
            return dict(_compute(encoders, part))
        self.fill(encoders, part)
        shards = _shards(encoders, part)
        return {name: _joined([_load(self._path(part, name, shard)) for shard in shards]) for name in encoders}

    def _path(self, part: Part, name: str, shard: range) -> Path:
        return self._folder / f"{part.name}-{name.rstrip('/') or JUDGED}-{shard.start:09d}-{shard.stop:09d}.npz"


def _shards(encoders: Mapping[str, FrozenEncoder], part: Part) -> list[range]:
    """The positions of the images of each shard: whole batches, so that only the last is padded."""
    batch = max(encoder.batch_size for encoder in encoders.values())
    size = max(min(IMAGES_PER_SHARD[kind] for kind in part.kinds) // batch, 1) * batch
    images = len(part.indices)
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


def _compute(encoders: Mapping[str, FrozenEncoder], part: Part) -> Iterator[tuple[str, Arrays]]:
    """Each encoder's features of the part. Images are read once for all encoders of one image size."""
    for image_size in dict.fromkeys(encoder.image_size for encoder in encoders.values()):
        group = {name: encoder for name, encoder in encoders.items() if encoder.image_size == image_size}
        parts: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in group}
        for name, arrays in in_batches(group, part):
            parts[name].append(arrays)
        for name, arrays in parts.items():
            yield name, _joined(arrays)


def in_batches(encoders: Mapping[str, FrozenEncoder], part: Part) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The features of the part, batch by batch, by encoders of one image size. UserError for one that is not finite."""
    (image_size,) = {encoder.image_size for encoder in encoders.values()}
    batch_size = max(encoder.batch_size for encoder in encoders.values())
    for images in read_images(part.source, part.indices, image_size, batch_size, whole=part.whole):
        for name, encoder in encoders.items():
            output = encoder(images)._asdict()
            arrays = {kind: np.asarray(output[kind]) for kind in part.kinds if output[kind] is not None}
            if not all(np.isfinite(x).all() for x in arrays.values()):
                raise UserError(NOT_FINITE)
            yield name, arrays


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    return {
        kind: Rows([part[kind] for part in parts])
        if kind == PATCHES
        else np.concatenate([part[kind] for part in parts])
        for kind in parts[0]
    }


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a shard; patches stay on disk."""
    if not path.exists():
        fix = "give an --output that all processes share, and each process as many devices"
        raise UserError(f"{path}, which another process computes, is not here; {fix}")
    with np.load(path, allow_pickle=False) as arrays:
        return {kind: mapped(path, kind) if kind == PATCHES else arrays[kind] for kind in arrays.files}


def save(path: Path, arrays: Arrays) -> None:
    """Writes an .npz; the file appears under its name only when it is complete."""
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for name, array in arrays.items():
            if isinstance(array, Rows):
                write_rows(archive, name, len(array), array.chunks())
            else:
                write_array(archive, name, array)
