"""Reading prepared folders: TFDS datasets in ArrayRecord form, written by launch.prepare_data or by TFDS itself."""

import bisect
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
import dataclasses
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

from google.protobuf import json_format, message
import numpy as np
import tensorflow_datasets as tfds

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.feature_classes import check_feature_classes
from tc_jepa.data.images import decode_mask, EncodedImage, IGNORED, image_shape
from tc_jepa.data.sources import BadRecord, Example, LabelSet, Question, VALIDATION
from tc_jepa.errors import UserError
from tc_jepa.storage.reading import lfs_reason_of, parse_json

VOCABULARY = "vocabulary.model"  # in the folder, beside TFDS's own files
MASK = "mask"
QUESTIONS_FEATURE = "questions_json"  # the feature in which it stores questions, each a Question as a JSON object
FILE = "file"  # the feature in which launch.prepare_data stores an image's file name
ENDS = 64 * 1024  # bytes at each end of a file that its identity covers
READERS = 16  # threads that read them
# What array_record, protobuf and TFDS raise for a record.
UNREADABLE = (RuntimeError, ValueError, KeyError, TypeError, OSError, message.DecodeError)


@dataclasses.dataclass(frozen=True)
class FeatureNames:
    """Which TFDS features of a dataset hold the image, texts, labels and mask. A dot names a nested one: captions.text.

    A text feature is a text or a sequence of texts; the texts of all named features are pooled. A caption is one
    candidate, a description is split into sentences. A label feature is a ClassLabel (a task of kind single) or a
    sequence of them (multi). A mask is an Image of class indices; a LabeledImage also has the names of the classes.
    Sequences of sequences cannot be read without TensorFlow.
    """

    image: str = "image"
    captions: tuple[str, ...] = ()  # if empty: "captions", or "captions.text" as in TFDS's coco_captions, if present
    descriptions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # if empty: all that are not nested
    mask: str = ""  # if empty: "mask", if present


DEFAULT_FEATURES = FeatureNames()


class PreparedSource:
    """One split of a prepared folder as a sources.Source.

    Texts become candidates as in preparation, if there are any. Tasks and segmentation are named by their features.
    `encoded`: images are EncodedImage, which whoever reads them decodes.
    Raises UserError for a path that is not a prepared folder, a missing split, feature or file.
    """

    def __init__(self, path: str, split: str, features: FeatureNames = DEFAULT_FEATURES, encoded: bool = False):
        builder = _open(path)
        available, infos = _AvailableFeatures(path, builder.info.features), _split_infos(builder)
        if split not in infos:
            raise UserError(f"{path} has no split {split!r}; it has {', '.join(infos)}")
        for shard in infos[split].filepaths:
            if not shard.is_file():
                raise UserError(f"{shard} is missing, or not a file; restore it or prepare the dataset again")
            if reason := lfs_reason_of(shard):
                raise UserError(f"{shard} cannot be read: {reason}")
        self._name, self._split, self._encoded = f"{path}, split {split}", split, encoded
        self._shards = [os.fspath(shard) for shard in infos[split].filepaths]
        self._ends = list(itertools.accumulate(infos[split].shard_lengths))
        # TFDS's partial decoding fails on data sources. So records are read raw, and only what is needed is parsed.
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        self._records = builder.as_data_source(infos[split].name, deserialize_method=raw)
        self._image = available.image(features.image)
        self._captions = available.texts(features.captions or available.default_captions())
        self._descriptions = available.texts(features.descriptions)
        self.tasks: Mapping[str, LabelSet] = available.tasks(features.labels)
        self.segmentations: Mapping[str, tuple[str, ...]] = available.segmentations(features.mask)
        self._example = available.only([self._image, *self._captions, *self._descriptions])
        self._labels = available.only(self.tasks)
        self._mask = available.only([self._image, *self.segmentations])
        self._file = available.only([FILE] * (FILE in builder.info.features))
        self._texts = available.only([*self._captions, *self._descriptions])
        self.has_questions = QUESTIONS_FEATURE in builder.info.features
        self._questions = available.only([QUESTIONS_FEATURE] * self.has_questions)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """The image and its candidates. Raises BadRecord for a damaged one; encoded images raise it later."""
        record = self._read(self._example, index)
        image = EncodedImage(record[self._image], self._where(index))
        return Example(image if self._encoded else image.pixels(), self._candidates(record, index))

    def captions(self, index: int) -> tuple[str, ...]:
        """The image's candidate captions. Does not decode the image."""
        return self._candidates(self._read(self._texts, index), index)

    def _candidates(self, record: dict[str, Any], index: int) -> tuple[str, ...]:
        try:
            texts = _texts(record, self._captions), _texts(record, self._descriptions)
        except UNREADABLE as error:
            raise self._named(index, error) from error
        return candidates(*texts).texts

    def labels(self, index: int) -> dict[str, int | np.ndarray]:
        """By task: the class as an int, or bool [classes]. Raises UserError for -1, TFDS's unknown label."""
        record = self._read(self._labels, index)
        labels: dict[str, int | np.ndarray] = {}
        for name, task in self.tasks.items():
            value = _value(record, name)
            if task.kind == "single" and value < 0:
                fix = "test on a labelled split (evaluation.test_split)"
                raise UserError(f"{self._name}: image {index} has no {name}; {fix}")
            labels[name] = int(value) if task.kind == "single" else np.isin(np.arange(len(task.classes)), value)
        return labels

    def file(self, index: int) -> str:
        """The image's file name, as launch.prepare_data stores it; SPLIT/INDEX for other datasets."""
        record = self._read(self._file, index)
        return record[FILE].decode() if FILE in record else f"{self._split}/{index}"

    def mask(self, index: int, name: str = MASK) -> np.ndarray:
        """uint8 [height, width], the size of the image: class indices of one of `segmentations`, 255 = ignore.

        Raises UserError for a mask that does not decode, has another size or contains a class without a name.
        """
        record, classes = self._read(self._mask, index), self.segmentations[name]
        try:
            mask, shape = decode_mask(record[name]), image_shape(record[self._image])
            if mask.shape != shape:
                sizes = f"{mask.shape[1]} x {mask.shape[0]} pixels but its upright image {shape[1]} x {shape[0]}"
                raise ValueError(f"it has {sizes}")
            highest = int(mask[mask != IGNORED].max(initial=0))
            if classes and highest >= len(classes):
                raise ValueError(f"it contains class {highest} but only {len(classes)} classes have names")
        except ValueError as error:
            fix = "store masks as PNGs of class indices at the size of their images"
            raise UserError(f"{self._name}: {name} of {self.file(index)} is not usable: {error}; {fix}") from error
        return mask

    def questions(self, index: int) -> list[Question]:
        """What is asked about the image. Raises BadRecord where it is not as launch.prepare_data stores it."""
        record = self._read(self._questions, index)
        try:
            stored = [parse_json(text) for text in _texts(record, [QUESTIONS_FEATURE] * self.has_questions)]
            return [Question(one["text"], tuple(one["answers"]), one["kind"]) for one in stored]
        except UNREADABLE as error:
            raise self._named(index, error) from error

    def _read(self, features: tfds.features.FeaturesDict, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has {len(self)} images; index {index} is out of range")
        # Images stay encoded: this project decodes them itself (tc_jepa/data/images.py).
        encoded = {name: tfds.decode.SkipDecoding() for name in (self._image, *self.segmentations) if name in features}
        try:
            return features.deserialize_example_np(self._records[index], decoders=encoded)
        except UNREADABLE as error:
            raise self._named(index, error) from error

    def _named(self, index: int, error: Exception) -> UserError:
        """A BadRecord for an error of a record; a plain UserError where the record may be whole.

        A file that cannot be read now, as of a network that is down, may be later.
        """
        damaged = "Corrupted" in str(error) or not isinstance(error, (RuntimeError, OSError))
        detail = "features are missing" if isinstance(error, (KeyError, TypeError)) else str(error)
        reason = f"it is damaged: {detail}" if damaged else detail
        text = f"{self._where(index)} cannot be read: {reason}; restore the file, or prepare the dataset again"
        return (BadRecord if damaged else UserError)(text, about=self._shard(index)[0])

    def _where(self, index: int) -> str:
        shard, record = self._shard(index)
        return f"{shard}: record {record} (image {index} of split {self._split})"

    def _shard(self, index: int) -> tuple[str, int]:
        """The file that holds a record, and its place there."""
        number = min(bisect.bisect_right(self._ends, index), len(self._shards) - 1)
        return self._shards[number], index - (self._ends[number - 1] if number else 0)


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A prepared folder as a sources.Dataset. Its methods raise UserError for a folder that cannot be read."""

    name: str  # its path
    features: FeatureNames = DEFAULT_FEATURES
    encoded: bool = False

    def splits(self) -> dict[str, int]:
        return splits(self.name)

    def open(self, split: str) -> PreparedSource:
        return PreparedSource(self.name, split, self.features, self.encoded)

    def vocabulary_path(self) -> str | None:
        model = Path(self.name) / VOCABULARY
        return str(model) if model.is_file() else None

    def identity(self) -> dict[str, Any]:
        """What the folder holds, as JSON: the same for a copy in another place, different when the data changes.

        {"splits": {split: {"images": number, "shards": {file name: file_identity}}}, "vocabulary": file_identity}. It
        is cheap, because only the ends of a shard are read; so it misses a change in the middle that keeps the size.
        """
        found = {}
        with ThreadPoolExecutor(READERS) as pool:  # a network file system answers slowly, and many at once
            for split, info in _split_infos(_open(self.name)).items():
                paths = info.filepaths
                shards = zip((path.name for path in paths), pool.map(file_identity, paths), strict=True)
                found[split] = {"images": info.num_examples, "shards": dict(shards)}
        return {"splits": found, "vocabulary": file_identity(Path(self.name) / VOCABULARY)}


def splits(path: str) -> dict[str, int]:
    """The number of images of each split. Raises UserError for a path that is not a prepared folder."""
    return {name: info.num_examples for name, info in _split_infos(_open(path)).items()}


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


def _open(path: str) -> tfds.core.DatasetBuilder:
    fix = "give a folder that launch.prepare_data wrote, or a TFDS folder that directly contains features.json"
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder; {fix}")
    try:
        check_feature_classes(path)
        builder = tfds.builder_from_directory(path)
    except (OSError, ValueError, RecursionError, json_format.Error) as error:
        raise UserError(f"{path} does not contain a readable dataset ({error}); {fix}") from error
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        form = builder.info.file_format.value
        raise UserError(f"{path} is in the file format {form}; prepare it again with TFDS's file_format='array_record'")
    return builder


def _split_infos(builder: tfds.core.DatasetBuilder) -> dict[str, tfds.core.SplitInfo]:
    """By this project's split names: TFDS's own datasets mostly use "validation"."""
    return {VALIDATION if name == "validation" else name: info for name, info in builder.info.splits.items()}


class _AvailableFeatures:
    """The features of a dataset by dotted name. Raises UserError for a name that it does not have."""

    def __init__(self, path: str, features: tfds.features.FeaturesDict):
        self._path, self._features = path, features
        self._leaves = dict(sorted(_leaves(features, "", 0), key=lambda leaf: leaf[0]))

    def image(self, name: str, kind: str = "image") -> str:
        images = [name for name, feature in self._features.items() if isinstance(feature, tfds.features.Image)]
        return self._known(name, kind, images)

    def texts(self, names: Collection[str]) -> list[str]:
        available = [name for name, (feature, depth) in self._leaves.items() if _is_text(feature) and depth <= 1]
        return [self._known(name, "text", available) for name in names]

    def default_captions(self) -> list[str]:
        return [name for name in ("captions", "captions.text") if name in self._leaves]

    def segmentations(self, name: str) -> dict[str, tuple[str, ...]]:
        """The named mask, or the default one if it is present, with the names of its classes, () if unknown."""
        if not name and not isinstance(self._leaves.get(MASK, (None, 0))[0], tfds.features.Image):
            return {}
        feature = self._features[self.image(name or MASK, "mask")]
        # A LabeledImage that was declared with a number of classes has "0", "1", ... as names.
        return {name or MASK: tuple(feature.names) if isinstance(feature, tfds.features.LabeledImage) else ()}

    def tasks(self, names: Collection[str]) -> dict[str, LabelSet]:
        labels = {
            name: LabelSet("multi" if depth else "single", tuple(feature.names))
            for name, (feature, depth) in self._leaves.items()
            if isinstance(feature, tfds.features.ClassLabel) and depth <= 1
        }
        chosen = [self._known(name, "label", labels) for name in names] or [name for name in labels if "." not in name]
        return {name: labels[name] for name in sorted(chosen)}

    def only(self, names: Collection[str]) -> tfds.features.FeaturesDict:
        """The top-level features that must be parsed to read these."""
        tops = {name.partition(".")[0] for name in names}
        return tfds.features.FeaturesDict({top: self._features[top] for top in tops})

    def _known(self, name: str, kind: str, available: Collection[str]) -> str:
        if name not in available:
            has = f"it has {', '.join(available)}" if available else "it has none"
            raise UserError(f"{self._path} has no {kind} feature {name!r}; {has}")
        return name


def _leaves(feature: tfds.features.FeatureConnector, name: str, depth: int) -> Iterator[tuple[str, tuple[Any, int]]]:
    """Features that contain no others, with the number of sequences around each."""
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


def _texts(record: dict[str, Any], names: Collection[str]) -> list[str]:
    """The texts of several features, each a text or a sequence of texts."""
    values = [_value(record, name) for name in names]
    return [text.decode() for value in values for text in ([value] if isinstance(value, bytes) else value)]
