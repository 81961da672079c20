"""A folder of images with a captions.jsonl, or any source -> one folder: a TFDS dataset in ArrayRecord form.

Images are stored as the bytes they came in, decoded once to prove that they can be. Each split keeps the order of its
origin. The folder appears under its name only when it is whole.
"""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from tc_jepa.data.captions import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.images import decode_image, decode_mask
from tc_jepa.data.prepared import VOCABULARY
from tc_jepa.data.scenes import SceneSource
from tc_jepa.data.sources import Source, SPLITS, TEST, TRAIN, VALIDATION
from tc_jepa.errors import UserError
from tc_jepa.files import new_folder, refuse_existing

IMAGES_PER_SHARD = 10_000
IMAGES_PER_WRITE = 64  # not 1: TFDS rewrites its metadata files at every write


@dataclasses.dataclass
class Summary:
    """What was written: images by split, images by their number of captions, and how many images were left out."""

    images: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    captions: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    skipped: int = 0

    def __str__(self) -> str:
        images = ", ".join(f"{self.images[split]} {split}" for split in SPLITS if self.images[split])
        mean = sum(number * count for number, count in self.captions.items()) / self.captions.total()
        return (
            f"images: {images}; captions per image: min {min(self.captions)}, mean {mean:.2f}, "
            f"max {max(self.captions)}; skipped: {self.skipped}"
        )


class Line(NamedTuple):
    """One line of captions.jsonl, checked as far as it can be without opening an image."""

    number: int
    where: str  # FILE:NUMBER, for messages
    file: str
    path: Path
    split: str
    captions: list[str]
    annotations: dict[str, Any]  # those of label (str), labels (list of str) and mask (Path) that the line has


def prepare_folder(
    images: str, captions: str, output: str, vocabulary: str | None = None, skip_bad: bool = False
) -> Summary:
    """Writes the images that `captions` lists, and what it says of them, to the new folder `output`.

    `captions` holds one JSON object a line: "file", relative to `images`; "captions", a list of strings, empty for an
    image without any; and optionally "split" (train, val or test; train when absent), "label" (a string), "labels" (a
    list of strings) and "mask" (relative to `images`: a PNG of class indices as large as the upright image). Other
    keys are ignored, as are blank lines. Label, labels and mask are each on every line or on none, because every image
    of a dataset answers the same questions. A file is listed once: twice could put it in two splits.

    `vocabulary`, a SentencePiece model in T5's id convention, is stored with the data. Images that do not decode are
    an error, or with `skip_bad` named on stderr, left out and counted.

    Raises UserError, naming file and line, and then leaves nothing behind.
    """
    folder, listing = Path(images), Path(captions)
    if not folder.is_dir():
        raise UserError(f"--images={folder} is no folder; give the one that the files in {listing} are relative to")
    if not listing.is_file():
        raise UserError(f"--captions={listing} is no file; give one with a JSON object a line")
    refuse_existing(Path(output))
    model = None if vocabulary is None else _read_vocabulary(vocabulary)
    count, features = _survey(listing, folder)

    with _new_dataset(Path(output), features, model) as writer, tqdm(total=count, unit=" images") as progress:
        for line in _lines(listing, folder):
            data = _read(line.path, line.where)
            try:
                shape = decode_image(data).shape[:2]
            except ValueError as error:
                message = f"{line.where}: {line.file} does not decode: {error}"
                if not skip_bad:
                    raise UserError(f"{message}; mend it, remove its line, or pass --skip_bad") from error
                progress.write(f"skipped {message}", file=sys.stderr)
                writer.summary.skipped += 1
            else:
                example = {"image": data, "file": line.file, "captions": line.captions, **line.annotations}
                if "mask" in example:
                    example["mask"] = _read_mask(example["mask"], shape, line.where)
                writer.add(line.split, example)
            progress.update()
    return writer.summary


def prepare_scenes(count: int, output: str, seed: int, size: int, vocabulary: str | None = None) -> Summary:
    """Writes `count` training scenes of `size` x `size` pixels, and a tenth as many (at least 1) to val and to test.

    The vocabulary stored with them is the scenes' own unless another is given. Raises UserError for a count or size
    below 1, a bad vocabulary and an existing output.
    """
    held_out = max(1, count // 10)
    counts = {TRAIN: count, VALIDATION: held_out, TEST: held_out}
    sources = {split: SceneSource(seed, split, number, size) for split, number in counts.items()}
    return prepare_sources(sources, output, vocabulary or scenes_vocabulary_path())


def prepare_sources(sources: Mapping[str, Source], output: str, vocabulary: str | None = None) -> Summary:
    """Writes sources, by split, to the new folder `output`. They share tasks; images and masks become PNGs."""
    refuse_existing(Path(output))
    model = None if vocabulary is None else _read_vocabulary(vocabulary)
    features = _source_features(next(iter(sources.values())))
    count = sum(len(source) for source in sources.values())
    with _new_dataset(Path(output), features, model) as writer, tqdm(total=count, unit=" images") as progress:
        for split, source in sources.items():
            for index in range(len(source)):
                writer.add(split, _source_example(source, index))
                progress.update()
    return writer.summary


# Reading captions.jsonl


def _lines(listing: Path, folder: Path) -> Iterator[Line]:
    root = folder.resolve()
    with open(listing, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield _parse(raw, number, f"{listing}:{number}", root)


def _parse(raw: bytes, number: int, where: str, root: Path) -> Line:
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = str(error).split(":")[0]  # what follows counts lines within this one
        raise UserError(f"{where} is not JSON ({reason}); write one JSON object a line") from error
    if not isinstance(entry, dict):
        raise UserError(f'{where} is not a JSON object; write {{"file": "...", "captions": ["..."]}}')
    for key in ("file", "captions"):
        if key not in entry:
            raise UserError(f'{where} has no "{key}"; every line needs "file" and "captions", a list that may be empty')
    split = entry["split"] if "split" in entry else TRAIN
    if split not in SPLITS:
        raise UserError(f'{where}: "split" is {split!r}; it must be one of {", ".join(SPLITS)}')
    annotations: dict[str, Any] = {}
    if "label" in entry:
        annotations["label"] = _class_name(_string(entry["label"], "label", where), where)
    if "labels" in entry:
        annotations["labels"] = sorted({_class_name(name, where) for name in _strings(entry, "labels", where)})
    if "mask" in entry:
        annotations["mask"] = _inside(root, entry["mask"], "mask", where)
    path = _inside(root, entry["file"], "file", where)
    return Line(number, where, entry["file"], path, split, _strings(entry, "captions", where), annotations)


def _string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{where}: "{key}" holds {value!r}, which is not a string; put it in quotes')
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair
        raise UserError(f'{where}: "{key}" holds {value!r}, which is not Unicode; remove that character') from error
    return value


def _strings(entry: dict[str, Any], key: str, where: str) -> list[str]:
    if not isinstance(entry[key], list):
        raise UserError(f'{where}: "{key}" is not a list of strings; write ["...", "..."], or [] for none')
    return [_string(value, key, where) for value in entry[key]]


def _class_name(name: str, where: str) -> str:
    if name.splitlines() != [name.strip()]:  # TFDS keeps class names in a text file, one a line
        raise UserError(f"{where}: {name!r} is no class name; give words on one line, without space around them")
    return name


def _inside(root: Path, value: Any, key: str, where: str) -> Path:
    relative = _string(value, key, where)
    try:
        path = (root / relative).resolve()
        is_file = path.is_file()
    except (ValueError, OSError, RuntimeError) as error:  # a null byte, a name too long, links in a circle
        raise UserError(f'{where}: "{key}" {relative!r} is no usable path ({error}); correct it') from error
    if Path(relative).is_absolute() or not path.is_relative_to(root):
        raise UserError(f'{where}: "{key}" {relative!r} leaves the images folder; give a path inside {root}')
    if not is_file:
        raise UserError(f'{where}: "{key}" {relative!r} is missing from {root}; put a file there or remove the line')
    return path


def _survey(listing: Path, folder: Path) -> tuple[int, tfds.features.FeaturesDict]:
    """The number of lines and the features that hold them all. Raises UserError where lines contradict each other."""
    numbers: dict[str, int] = {}  # by image
    classes: dict[str, set[str]] = {"label": set(), "labels": set()}
    first = None
    for line in _lines(listing, folder):
        first = first or line
        before = numbers.setdefault(str(line.path), line.number)
        if before != line.number:
            raise UserError(f"{line.where}: {line.file} is already on line {before}; put its captions on one line")
        for key in sorted(first.annotations.keys() ^ line.annotations.keys()):
            has, lacks = (first, line) if key in first.annotations else (line, first)
            raise UserError(f'{lacks.where} has no "{key}" but {has.where} has; give it on every line or on none')
        if "label" in line.annotations:
            classes["label"].add(line.annotations["label"])
        if "labels" in line.annotations:
            classes["labels"].update(line.annotations["labels"])
    if first is None:
        raise UserError(f"{listing} has no lines; a dataset needs at least one image")
    features = _features(mask="mask" in first.annotations)
    features["file"] = tfds.features.Text()
    if "label" in first.annotations:
        features["label"] = tfds.features.ClassLabel(names=sorted(classes["label"]))
    if "labels" in first.annotations:
        if not classes["labels"]:
            raise UserError(f'{listing}: "labels" is empty on every line; leave the key out, or name some')
        features["labels"] = tfds.features.Sequence(tfds.features.ClassLabel(names=sorted(classes["labels"])))
    return len(numbers), tfds.features.FeaturesDict(features)


# Reading what a line names


def _read(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {path} cannot be read ({error.strerror}); make it readable") from error


def _read_mask(path: Path, shape: tuple[int, int], where: str) -> bytes:
    data = _read(path, where)
    try:
        found = decode_mask(data).shape
    except ValueError as error:
        raise UserError(f"{where}: mask {path} does not decode: {error}; save it as a PNG of class indices") from error
    if found != shape:
        sizes = f"{found[1]} x {found[0]} pixels and its upright image {shape[1]} x {shape[0]}"
        raise UserError(f"{where}: mask {path} is {sizes}; draw it at the image's size")
    return data


def _read_vocabulary(path: str) -> bytes:
    CaptionTokenizer(path, words=2)  # raises UserError where it is none that captions can be read with
    return Path(path).read_bytes()


# Reading sources


def _source_features(source: Source) -> tfds.features.FeaturesDict:
    features = _features(mask=source.has_masks)
    for name, task in source.tasks.items():
        label = tfds.features.ClassLabel(names=task.classes)
        features[name] = label if task.kind == "single" else tfds.features.Sequence(label)
    return tfds.features.FeaturesDict(features)


def _source_example(source: Source, index: int) -> dict[str, Any]:
    image, captions = source[index]
    example = {"image": _png(cv2.cvtColor(image, cv2.COLOR_RGB2BGR)), "captions": list(captions)}
    for name, label in source.labels(index).items():
        example[name] = label if source.tasks[name].kind == "single" else np.flatnonzero(label).tolist()
    if source.has_masks:
        example["mask"] = _png(source.mask(index))
    return example


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


# Writing


def _features(*, mask: bool) -> dict[str, tfds.features.FeatureConnector]:
    """What every dataset holds. Tasks go beside it, each under its name: prepared.PreparedSource finds them by type."""
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "captions": tfds.features.Sequence(tfds.features.Text()),
    }
    if mask:
        features["mask"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    return features


class _Writer:
    """Appends examples to their splits' shards, and counts.

    Through TFDS's sequential writer, which holds only what is being written. A GeneratorBasedBuilder holds a gigabyte,
    past that writes everything twice, and when told to keep the order reads the whole split back into memory.
    """

    def __init__(self, folder: Path, features: tfds.features.FeaturesDict):
        identity = tfds.core.DatasetIdentity(
            name="captioned_images", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=__name__
        )
        info = tfds.core.DatasetInfo(builder=identity, features=features)
        self._shards = tfds.core.SequentialWriter(info, IMAGES_PER_SHARD, file_format="array_record")
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self.summary = Summary()

    def add(self, split: str, example: dict[str, Any]) -> None:
        if split not in self._waiting:
            self._shards.initialize_splits([split])
            self._waiting[split] = []
        self._waiting[split].append(example)
        if len(self._waiting[split]) == IMAGES_PER_WRITE:
            self._flush(split)
        self.summary.images[split] += 1
        self.summary.captions[len(example["captions"])] += 1

    def close(self) -> None:
        for split in self._waiting:
            self._flush(split)
        self._shards.close_all()

    def _flush(self, split: str) -> None:
        self._shards.add_examples({split: self._waiting[split]})
        self._waiting[split] = []


@contextlib.contextmanager
def _new_dataset(output: Path, features: tfds.features.FeaturesDict, vocabulary: bytes | None) -> Iterator[_Writer]:
    """A writer to the folder `output`, which is there when the block ends well."""
    with new_folder(output) as folder:
        writer = _Writer(folder, features)
        yield writer
        if not writer.summary.images:
            raise UserError(f"{output} would be empty: no image decodes ({writer.summary.skipped} skipped)")
        writer.close()
        if vocabulary is not None:
            (folder / VOCABULARY).write_bytes(vocabulary)
