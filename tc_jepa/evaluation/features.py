"""Frozen features of chosen images: read once for all encoders, and kept on disk while an evaluation runs.

A folder of them is scratch. It holds about.json, which says what the features are of, and a shard of numpy arrays for
every encoder and IMAGES_PER_SHARD images of a part; a killed evaluation goes on from the shards that are whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from tc_jepa.data.sources import Source
from tc_jepa.errors import UserError
from tc_jepa.evaluation.encoder import FrozenEncoder, read_images
from tc_jepa.evaluation.extract import begin, save

IMAGES_PER_SHARD = 2048
ABOUT = "about.json"
JUDGED = "judged"  # what an encoder without a prefix is called on disk
NOT_FINITE = "the encoder's features are not finite: its training diverged; evaluate an earlier step"

Arrays = dict[str, np.ndarray]  # by kind: "pooled" float32 [N, D], "last_four" [N, 4 D], "patches" [N, P, D]


class FeatureStore:
    """Reads features, through `folder` where one is given.

    UserError for a folder that was begun with another `about`, or holds something else.
    """

    def __init__(self, folder: Path | None = None, about: Mapping[str, Any] | None = None):
        self._folder = folder
        if folder is not None:
            begin(folder, ABOUT, about or {})

    def close(self) -> None:
        """Removes the folder, what says what it is about last."""
        if self._folder is None:
            return
        for path in self._folder.glob("*.npz"):
            path.unlink()
        (self._folder / ABOUT).unlink()
        self._folder.rmdir()

    def read(
        self,
        encoders: Mapping[str, FrozenEncoder],
        source: Source,
        indices: Sequence[int],
        kinds: Sequence[str],
        part: str,
    ) -> dict[str, Arrays]:
        """Each encoder's features of the images `indices` of `source`, in that order, by the encoder's name.

        `part` names these images on disk. An encoder without blocks has no "last_four".
        UserError for a feature that is not finite.
        """
        parts: dict[str, list[Arrays]] = {name: [] for name in encoders}
        with tqdm.tqdm(total=len(indices), desc=f"features, {part}", unit="image", disable=None) as bar:
            for start in range(0, len(indices), IMAGES_PER_SHARD):
                chunk = indices[start : start + IMAGES_PER_SHARD]
                paths = {name: self._path(part, name, start) for name in encoders}
                missing = {name: encoders[name] for name, path in paths.items() if path is None or not path.exists()}
                found = dict(_compute(missing, source, chunk, kinds))
                for name, path in paths.items():
                    if name not in found:
                        found[name] = _load(path)
                    elif path is not None:
                        save(path, found[name])
                    parts[name].append(found[name])
                bar.update(len(chunk))
        return {name: _joined(arrays) for name, arrays in parts.items()}

    def _path(self, part: str, name: str, start: int) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{part}-{name.rstrip('/') or JUDGED}-{start:09d}.npz"


def _compute(
    encoders: Mapping[str, FrozenEncoder],
    source: Source,
    indices: Sequence[int],
    kinds: Sequence[str],
) -> Iterator[tuple[str, Arrays]]:
    """Images are read once for all encoders of a size."""
    for image_size in dict.fromkeys(encoder.image_size for encoder in encoders.values()):
        group = {name: encoder for name, encoder in encoders.items() if encoder.image_size == image_size}
        parts: dict[str, list[Arrays]] = {name: [] for name in group}
        batch_size = max(encoder.batch_size for encoder in group.values())
        for images in read_images(source, indices, image_size, batch_size):
            for name, encoder in group.items():
                said = encoder(images)._asdict()
                parts[name].append({kind: np.asarray(said[kind]) for kind in kinds if said[kind] is not None})
        for name, arrays in parts.items():
            joined = _joined(arrays)
            if not all(np.isfinite(x).all() for x in joined.values()):
                raise UserError(NOT_FINITE)
            yield name, joined


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
