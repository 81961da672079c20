"""A prepared folder, as launch.prepare_data or TFDS itself writes it in ArrayRecord form, as a source."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
import numpy as np
import tensorflow_datasets as tfds

from tc_jepa.data.images import decode_image, decode_mask
from tc_jepa.data.sources import Example, Task, VALIDATION
from tc_jepa.errors import UserError

VOCABULARY = "vocabulary.model"  # in the folder, beside TFDS's own files
IMAGES = ("image", "mask")  # the features whose bytes this project decodes itself


class PreparedSource:
    """One split of a prepared folder as a sources.Source.

    The image is the feature "image". Captions are the feature "captions", a text or a sequence of texts or, as in
    TFDS's coco_captions, of dicts with "text"; a dataset without it has none. The mask is the feature "mask". Every
    ClassLabel beside them is a task of kind single, every sequence of one a task of kind multi, under its own name.

    Raises UserError for a path that is no such folder, a split that it does not hold, and files that are missing.
    """

    def __init__(self, path: str, split: str):
        builder = _open(path)
        features, infos = builder.info.features, _split_infos(builder)
        if split not in infos:
            raise UserError(f"{path} has no split {split!r}; it holds {', '.join(infos)}")
        for shard in infos[split].filepaths:
            if not shard.exists():
                raise UserError(f"{shard} is missing; restore it or prepare the dataset anew")
        self._name = f"{path}, split {split}"
        # TFDS's partial decoding fails on data sources. So records come raw, and only what is asked for is parsed.
        self._records = builder.as_data_source(
            infos[split].name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self.tasks: Mapping[str, Task] = _tasks(features)
        self.has_masks = _is_image(features, "mask")
        self._example = _only(features, {"image", "captions"} & features.keys())
        self._captions = _only(features, {"captions"} & features.keys())
        self._labels = _only(features, self.tasks.keys())
        self._mask = _only(features, {"mask"} if self.has_masks else ())

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """The decoded image and its captions. Raises UserError for an image that does not decode."""
        record = self._read(self._example, index)
        try:
            image = decode_image(record["image"])
        except ValueError as error:
            raise UserError(f"{self._name}: image {index} does not decode: {error}; prepare it anew") from error
        return Example(image, _captions(record))

    def captions(self, index: int) -> tuple[str, ...]:
        """The image's captions, without decoding it."""
        return _captions(self._read(self._captions, index))

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """By task: the class as an int, or bool [classes]. Raises UserError where TFDS says -1, for unknown."""
        record = self._read(self._labels, index)
        labels: dict[str, int | np.ndarray] = {}
        for name, task in self.tasks.items():
            if task.kind == "multi":
                labels[name] = np.isin(np.arange(len(task.classes)), record[name])
            elif record[name] < 0:
                raise UserError(f"{self._name}: image {index} has no {name}; evaluate on a labelled split")
            else:
                labels[name] = int(record[name])
        return labels

    def mask(self, index: int) -> np.ndarray:
        """uint8 [height, width] of class indices, 255 = ignore; only where `has_masks`."""
        return decode_mask(self._read(self._mask, index)["mask"])

    def _read(self, features: tfds.features.FeaturesDict, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} holds {len(self)} images, none of index {index}")
        encoded = {name: tfds.decode.SkipDecoding() for name in IMAGES if name in features}
        return features.deserialize_example_np(self._records[index], decoders=encoded)


def splits(path: str) -> dict[str, int]:
    """The number of images in each split. Raises UserError for a path that is no prepared folder."""
    return {name: info.num_examples for name, info in _split_infos(_open(path)).items()}


def vocabulary_path(path: str) -> str | None:
    """The SentencePiece model stored with the data, if there is one."""
    model = Path(path) / VOCABULARY
    return str(model) if model.is_file() else None


def _open(path: str) -> tfds.core.DatasetBuilder:
    mend = "give the folder that launch.prepare_data wrote, or a TFDS one that directly holds features.json"
    if not Path(path).is_dir():
        raise UserError(f"{path} is no folder; {mend}")
    try:
        builder = tfds.builder_from_directory(path)
    except (OSError, ValueError, json_format.Error) as error:
        raise UserError(f"{path} holds no readable dataset ({' '.join(str(error).split())}); {mend}") from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        form = builder.info.file_format.value
        raise UserError(f"{path} is in {form} form; prepare it again with TFDS's file_format='array_record'")
    features = builder.info.features
    if not _is_image(features, "image"):
        raise UserError(f'{path} has no image feature "image" (it has {", ".join(features)}); {mend}')
    return builder


def _split_infos(builder: tfds.core.DatasetBuilder) -> dict[str, tfds.core.SplitInfo]:
    """By our names: TFDS's own datasets mostly say "validation"."""
    return {VALIDATION if name == "validation" else name: info for name, info in builder.info.splits.items()}


def _is_image(features: tfds.features.FeaturesDict, name: str) -> bool:
    return name in features and isinstance(features[name], tfds.features.Image)


def _tasks(features: tfds.features.FeaturesDict) -> dict[str, Task]:
    tasks = {}
    for name in sorted(features):
        kind, feature = "single", features[name]
        if isinstance(feature, tfds.features.Sequence):
            kind, feature = "multi", feature.feature
        if isinstance(feature, tfds.features.ClassLabel):
            tasks[name] = Task(kind, tuple(feature.names))
    return tasks


def _only(features: tfds.features.FeaturesDict, names: Collection[str]) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict({name: features[name] for name in names})


def _captions(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "captions" not in record:
        return ()
    captions: bytes | list[bytes] | dict[str, list[bytes]] = record["captions"]
    if isinstance(captions, bytes):
        captions = [captions]
    elif isinstance(captions, dict):
        captions = captions["text"]
    return tuple(caption.decode() for caption in captions)
