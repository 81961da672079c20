"""A prepared folder, as launch.prepare_data or TFDS itself writes it in ArrayRecord form, as a source."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from google.protobuf import json_format
import numpy as np
import tensorflow_datasets as tfds

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.feature_classes import check_feature_classes
from tc_jepa.data.images import decode_image, decode_mask, IGNORED, image_shape
from tc_jepa.data.sources import Example, Task, VALIDATION
from tc_jepa.errors import UserError

VOCABULARY = "vocabulary.model"  # in the folder, beside TFDS's own files
MASK = "mask"
FILE = "file"  # what launch.prepare_data calls the name of an image
ENDS = 64 * 1024  # bytes at each end of a file that its identity covers
READERS = 16  # threads that read them


@dataclasses.dataclass(frozen=True)
class Features:
    """What a dataset's features are to us, by name; a dot reaches into a nested one: captions.text.

    A text feature is a text or a sequence of texts; all that are named are pooled. Captions are candidates as they are,
    descriptions are split into sentences. A label feature is a ClassLabel, a task of kind single, or a sequence of
    them, of kind multi. A mask is an Image of class indices, whose names are known where it is a LabeledImage.
    Sequences of sequences cannot be read without TensorFlow.
    """

    image: str = "image"
    captions: tuple[str, ...] = ()  # none: "captions", or "captions.text" as in TFDS's coco_captions, if it is there
    descriptions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # none: all that are not nested
    mask: str = ""  # none: "mask", if it is there


USUAL_FEATURES = Features()


class PreparedSource:
    """One split of a prepared folder as a sources.Source.

    Captions are made candidates as preparation does it; a dataset without any is fine. Tasks and the segmentation have
    their features' names.

    Raises UserError for a path that is no such folder, a split or feature that it does not hold, and missing files.
    """

    def __init__(self, path: str, split: str, features: Features = USUAL_FEATURES):
        builder = _open(path)
        held, infos = _Held(path, builder.info.features), _split_infos(builder)
        if split not in infos:
            raise UserError(f"{path} has no split {split!r}; it holds {', '.join(infos)}")
        for shard in infos[split].filepaths:
            if not shard.exists():
                raise UserError(f"{shard} is missing; restore it or prepare the dataset anew")
        self._name, self._split = f"{path}, split {split}", split
        # TFDS's partial decoding fails on data sources. So records come raw, and only what is asked for is parsed.
        self._records = builder.as_data_source(
            infos[split].name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self._image = held.image(features.image)
        self._captions = held.texts(features.captions or held.usual_captions())
        self._descriptions = held.texts(features.descriptions)
        self.tasks: Mapping[str, Task] = held.tasks(features.labels)
        self.segmentations: Mapping[str, tuple[str, ...]] = held.segmentations(features.mask)
        self._example = held.only([self._image, *self._captions, *self._descriptions])
        self._labels = held.only(self.tasks)
        self._mask = held.only([self._image, *self.segmentations])
        self._file = held.only([FILE] * (FILE in builder.info.features))
        self._texts = held.only([*self._captions, *self._descriptions])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """The decoded image and its candidates. Raises UserError for an image that does not decode."""
        record = self._read(self._example, index)
        try:
            image = decode_image(record[self._image])
        except ValueError as error:
            raise UserError(f"{self._name}: image {index} does not decode: {error}; prepare it anew") from error
        return Example(image, self._candidates(record))

    def captions(self, index: int) -> tuple[str, ...]:
        """The image's candidates, without decoding it."""
        return self._candidates(self._read(self._texts, index))

    def _candidates(self, record: dict[str, Any]) -> tuple[str, ...]:
        captions, descriptions = (
            [text for name in names for text in _texts(_value(record, name))]
            for names in (self._captions, self._descriptions)
        )
        return candidates(captions, descriptions).texts

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """By task: the class as an int, or bool [classes]. Raises UserError where TFDS says -1, for unknown."""
        record = self._read(self._labels, index)
        labels: dict[str, int | np.ndarray] = {}
        for name, task in self.tasks.items():
            value = _value(record, name)
            if task.kind == "multi":
                labels[name] = np.isin(np.arange(len(task.classes)), value)
            elif value < 0:
                mend = "test on a labelled split (evaluation.test_split)"
                raise UserError(f"{self._name}: image {index} has no {name}; {mend}")
            else:
                labels[name] = int(value)
        return labels

    def file(self, index: int) -> str:
        """The feature "file", which launch.prepare_data writes; SPLIT/INDEX where there is none."""
        record = self._read(self._file, index)
        return record[FILE].decode() if FILE in record else f"{self._split}/{index}"

    def mask(self, index: int, name: str = MASK) -> np.ndarray:
        """uint8 [height, width] of the class indices of one of `segmentations`, 255 = ignore, as large as the image.

        Raises UserError for one that does not decode, has another size or holds a class without a name.
        """
        record, classes = self._read(self._mask, index), self.segmentations[name]
        try:
            mask, shape = decode_mask(record[name]), image_shape(record[self._image])
        except ValueError as error:
            raise self._bad_mask(index, name, f"does not decode: {error}; store PNGs of class indices") from error
        if mask.shape != shape:
            sizes = f"is {mask.shape[1]} x {mask.shape[0]} pixels and the upright image {shape[1]} x {shape[0]}"
            raise self._bad_mask(index, name, f"{sizes}; draw it at the image's size")
        highest = int(mask[mask != IGNORED].max(initial=0))
        if classes and highest >= len(classes):
            raise self._bad_mask(
                index, name, f"holds class {highest}, and only {len(classes)} are named; prepare it anew"
            )
        return mask

    def _bad_mask(self, index: int, name: str, reason: str) -> UserError:
        return UserError(f"{self._name}: {name} of {self.file(index)} {reason}")

    def _read(self, features: tfds.features.FeaturesDict, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} holds {len(self)} images, none of index {index}")
        # Images stay bytes, which this project decodes itself.
        encoded = {name: tfds.decode.SkipDecoding() for name in (self._image, *self.segmentations) if name in features}
        return features.deserialize_example_np(self._records[index], decoders=encoded)


def splits(path: str) -> dict[str, int]:
    """The number of images in each split. Raises UserError for a path that is no prepared folder."""
    return {name: info.num_examples for name, info in _split_infos(_open(path)).items()}


def data_identity(path: str) -> dict[str, Any]:
    """What a prepared folder holds, as JSON: the same for a copy in another place, different when the data changes.

    {"splits": {split: {"images": number, "shards": {file name: file_identity}}}, "vocabulary": file_identity}. It is
    cheap, because only the ends of a shard are read; so it misses a change in the middle that keeps the size. Raises
    UserError for a path that is not a prepared folder.
    """
    splits = {}
    with ThreadPoolExecutor(READERS) as pool:  # a network file system answers slowly, and many at once
        for name, info in _split_infos(_open(path)).items():
            shards = zip((shard.name for shard in info.filepaths), pool.map(file_identity, info.filepaths), strict=True)
            splits[name] = {"images": info.num_examples, "shards": dict(shards)}
    return {"splits": splits, "vocabulary": file_identity(Path(path) / VOCABULARY)}


def file_identity(path: str | os.PathLike) -> dict[str, Any] | None:
    """{"bytes": size, "ends": sha256 of the first and last 64 KiB} of a file; None where there is none."""
    path = Path(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(ENDS)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(len(head), size - ENDS))
        return {"bytes": size, "ends": hashlib.sha256(head + file.read()).hexdigest()}


def vocabulary_path(path: str) -> str | None:
    """The SentencePiece model stored with the data, if there is one."""
    model = Path(path) / VOCABULARY
    return str(model) if model.is_file() else None


def _open(path: str) -> tfds.core.DatasetBuilder:
    mend = "give the folder that launch.prepare_data wrote, or a TFDS one that directly holds features.json"
    if not Path(path).is_dir():
        raise UserError(f"{path} is no folder; {mend}")
    try:
        check_feature_classes(path)
        builder = tfds.builder_from_directory(path)
    except (OSError, ValueError, RecursionError, json_format.Error) as error:
        raise UserError(f"{path} holds no readable dataset ({' '.join(str(error).split())}); {mend}") from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        form = builder.info.file_format.value
        raise UserError(f"{path} is in {form} form; prepare it again with TFDS's file_format='array_record'")
    return builder


def _split_infos(builder: tfds.core.DatasetBuilder) -> dict[str, tfds.core.SplitInfo]:
    """By our names: TFDS's own datasets mostly say "validation"."""
    return {VALIDATION if name == "validation" else name: info for name, info in builder.info.splits.items()}


class _Held:
    """The features that a dataset holds, by dotted name."""

    def __init__(self, path: str, features: tfds.features.FeaturesDict):
        self._path, self._features = path, features
        self._leaves = dict(sorted(_leaves(features, "", 0), key=lambda leaf: leaf[0]))

    def image(self, name: str) -> str:
        return self._known(name, "image", self.images())

    def texts(self, names: Collection[str]) -> list[str]:
        held = [name for name, (feature, depth) in self._leaves.items() if _is_text(feature) and depth <= 1]
        return [self._known(name, "text", held) for name in names]

    def usual_captions(self) -> list[str]:
        return [name for name in ("captions", "captions.text") if name in self._leaves]

    def images(self) -> list[str]:
        return [name for name, feature in self._features.items() if isinstance(feature, tfds.features.Image)]

    def segmentations(self, name: str) -> dict[str, tuple[str, ...]]:
        """The mask of that name, or the usual one if it is there, with the names of its classes, as far as known."""
        if not name and MASK not in self.images():
            return {}
        feature = self._features[self._known(name or MASK, "mask", self.images())]
        # TFDS has class names for a LabeledImage, and of one that was given their number alone, those numbers.
        return {name or MASK: tuple(feature.names) if isinstance(feature, tfds.features.LabeledImage) else ()}

    def tasks(self, names: Collection[str]) -> dict[str, Task]:
        labels = {
            name: Task("multi" if depth else "single", tuple(feature.names))
            for name, (feature, depth) in self._leaves.items()
            if isinstance(feature, tfds.features.ClassLabel) and depth <= 1
        }
        chosen = [self._known(name, "label", labels) for name in names] or [name for name in labels if "." not in name]
        return {name: labels[name] for name in sorted(chosen)}

    def only(self, names: Collection[str]) -> tfds.features.FeaturesDict:
        """What must be parsed to have these."""
        tops = {name.partition(".")[0] for name in names}
        return tfds.features.FeaturesDict({top: self._features[top] for top in tops})

    def _known(self, name: str, kind: str, held: Collection[str]) -> str:
        if name not in held:
            has = f"it has {', '.join(held)}" if held else "it has none"
            raise UserError(f"{self._path} has no {kind} feature {name!r}; {has}")
        return name


def _leaves(feature: tfds.features.FeatureConnector, name: str, depth: int) -> Iterator[tuple[str, tuple[Any, int]]]:
    """Features that hold no others, each with the number of sequences that it lies in."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for key in feature:
            yield from _leaves(feature[key], f"{name}.{key}" if name else key, depth)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, name, depth + 1)
    else:
        yield name, (feature, depth)


def _is_text(feature: tfds.features.FeatureConnector) -> bool:
    return isinstance(feature, tfds.features.Tensor) and feature.np_dtype == np.object_ and feature.shape == ()


def _value(record: dict[str, Any], name: str) -> Any:
    """What lies under a dotted name. TFDS gives a sequence of dicts as a dict of lists."""
    for key in name.split("."):
        record = record[key]
    return record


def _texts(value: bytes | list[bytes]) -> list[str]:
    return [text.decode() for text in ([value] if isinstance(value, bytes) else value)]
