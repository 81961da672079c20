"""A folder of images with a captions.jsonl -> a dataset."""

from array import array
from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import json
from pathlib import Path
import sys
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.prepare import dataset, pictures, texts
from tc_jepa.data.prepare.dataset import Bad, Record, Shard
from tc_jepa.data.prepare.masks import Meaning, read_meaning
from tc_jepa.data.prepare.pictures import DIGEST_BYTES
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.sources import SPLITS, TRAIN
from tc_jepa.errors import UserError
from tc_jepa.storage.files import refuse_existing


class Line(NamedTuple):
    """One line of captions.jsonl, checked as far as it can be without opening an image."""

    where: str  # FILE:NUMBER, for messages
    file: str
    path: Path
    split: str
    captions: list[str]
    descriptions: list[str]
    annotations: dict[str, Any]  # those of label (str), labels (list of str) and mask (Path) that the line has


class Place(NamedTuple):
    """Where in the file a line is."""

    number: int  # from 1
    offset: int  # in bytes


Found = dict[str, str]  # classes, and the line that each is first on


class Places:
    """The places of one split's lines and a digest of each, packed: a dataset may have tens of millions."""

    def __init__(self):
        self.numbers, self.offsets, self.digests = array("Q"), array("Q"), bytearray()

    def add(self, place: Place, digest: bytes) -> None:
        self.numbers.append(place.number)
        self.offsets.append(place.offset)
        self.digests += digest

    def shards(self, split: str, form: Mapping[str, Any]) -> Iterator[Shard]:
        """Cut into shards. Classes, in `form`, are part of what makes them: one more may change all indices."""
        beginning = json.dumps(form).encode()
        for index, span in enumerate(dataset.spans(len(self.numbers))):
            numbers, offsets = self.numbers[span.start : span.stop], self.offsets[span.start : span.stop]
            lines = self.digests[span.start * DIGEST_BYTES : span.stop * DIGEST_BYTES]
            digest = hashlib.blake2b(beginning + lines, digest_size=DIGEST_BYTES).hexdigest()
            yield Shard(split, index, digest, len(numbers), (numbers, offsets))


def prepare_folder(
    images: str,
    captions: str,
    output: str,
    vocabulary: str | None = None,
    classes: str | None = None,
    first_class: int = 0,
    ignore_index: int | None = None,
    skip_bad: bool = False,
    words: int | None = None,
    workers: int = 0,
) -> Summary:
    """Writes the images that `captions` lists, and what it says of them, to the new folder `output`.

    `captions` holds one JSON object a line: "file", relative to `images`; "captions", a list of strings, empty for an
    image without any; and optionally "descriptions" (a long text or a list of them, whose sentences are captions too),
    "split" (train, val or test; train when absent), "label" (a string), "labels" (a list of strings) and "mask"
    (relative to `images`: a PNG of class indices as large as the upright image). Other keys are ignored, as are blank
    lines. Label, labels and mask are each on every line or on none, because every image of a dataset answers the same
    questions. A file is listed once: twice could put it in two splits.

    `classes` names those of the masks, a file with a name a line; with it `first_class` and `ignore_index` say what the
    masks' values mean, as in prepare_segmentation. Without it those are class indices without names.

    `vocabulary`, a SentencePiece model in T5's id convention, is stored with the data; with `words`, S, the candidates
    that are longer are counted. They are stored whole, and cut when they are read. Images that do not decode are an
    error, or with `skip_bad` named on stderr, left out and counted. `workers` processes do the work, 0: this one.

    Raises UserError, naming file and line, also for a label that only another split than train has; such a one among
    `labels` is named on stderr. What dataset.write says of work under way holds.
    """
    folder, listing = Path(images), Path(captions)
    if not folder.is_dir():
        raise UserError(f"--images={folder} is no folder; give the one that the files in {listing} are relative to")
    if not listing.is_file():
        raise UserError(f"--captions={listing} is no file; give one with a JSON object a line")
    refuse_existing(Path(output))
    model = dataset.read_vocabulary(vocabulary)
    meaning = None if classes is None else read_meaning(classes, first_class, ignore_index)
    places, tasks, features = _survey(listing, folder, meaning)
    form = tasks if meaning is None else tasks | {"mask": dataclasses.asdict(meaning)}
    shards = [shard for split, lines in places.items() for shard in lines.shards(split, form)]
    job = dataset.Job(LineReader(listing, folder.resolve(), meaning), features, model, words, skip_bad)
    command = {"source": "folder", "images": str(folder.resolve()), "captions": str(listing.resolve())}
    if classes is not None:
        values = {"first_class": first_class, "ignore_index": ignore_index}
        command |= {"classes": str(Path(classes).resolve())} | values
    return dataset.write(Path(output), job, shards, command, workers=workers, unit="images")


@dataclasses.dataclass(frozen=True)
class LineReader:
    """Reads the images that some of the file's lines name."""

    listing: Path
    root: Path
    meaning: Meaning | None

    def read(self, items: tuple[array, array]) -> Iterator[Record | Bad]:
        with open(self.listing, "rb") as file:
            for number, offset in zip(*items):
                file.seek(offset)
                line = _parse(file.readline(texts.LIMIT), f"{self.listing}:{number}", self.root)
                yield _record(line, self.meaning)


# Reading captions.jsonl


def _lines(listing: Path) -> Iterator[tuple[Place, bytes]]:
    """Lines that are not blank, read so that one of gigabytes is refused and not held."""
    number = offset = 0
    with open(listing, "rb") as file:
        while raw := file.readline(texts.LIMIT + 1):
            number += 1
            if len(raw) > texts.LIMIT:
                size = f"{texts.LIMIT >> 20} MiB"
                raise UserError(
                    f"{listing}:{number} is longer than {size}; write one JSON object a line, an image each"
                )
            if raw.strip():
                yield Place(number, offset), raw
            offset += len(raw)


def _parse(raw: bytes, where: str, root: Path) -> Line:
    entry = texts.parse(raw, where, 'write {"file": "...", "captions": ["..."]} on one line')
    for key in ("file", "captions"):
        if key not in entry:
            raise UserError(f'{where} has no "{key}"; every line needs "file" and "captions", a list that may be empty')
    split = entry["split"] if "split" in entry else TRAIN
    if split not in SPLITS:
        raise UserError(f'{where}: "split" is {split!r}; it must be one of {", ".join(SPLITS)}')
    annotations: dict[str, Any] = {}
    if "label" in entry:
        annotations["label"] = texts.class_name(texts.string(entry["label"], "label", where), where)
    if "labels" in entry:
        labels = texts.strings(entry["labels"], "labels", where)
        annotations["labels"] = sorted({texts.class_name(name, where) for name in labels})
    if "mask" in entry:
        annotations["mask"] = _inside(root, entry["mask"], "mask", where)
    captions = texts.strings(entry["captions"], "captions", where)
    descriptions = []
    if "descriptions" in entry:
        descriptions = texts.string_or_strings(entry["descriptions"], "descriptions", where)
    path = _inside(root, entry["file"], "file", where)
    return Line(where, entry["file"], path, split, captions, descriptions, annotations)


def _inside(root: Path, value: Any, key: str, where: str) -> Path:
    relative = texts.string(value, key, where)
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


def _survey(
    listing: Path, folder: Path, meaning: Meaning | None
) -> tuple[dict[str, Places], dict[str, list[str]], tfds.features.FeaturesDict]:
    """Lines by split, classes by task, and the features that hold all. Raises UserError where lines contradict."""
    root = folder.resolve()
    numbers: dict[str, int] = {}  # by image
    found: dict[str, dict[str, Found]] = {"label": {}, "labels": {}}  # by task and split
    places: dict[str, Places] = {}
    first = None
    for place, raw in _lines(listing):
        line = _parse(raw, f"{listing}:{place.number}", root)
        first = first or line
        before = numbers.setdefault(str(line.path), place.number)
        if before != place.number:
            raise UserError(f"{line.where}: {line.file} is already on line {before}; put its captions on one line")
        for key in sorted(first.annotations.keys() ^ line.annotations.keys()):
            has, lacks = (first, line) if key in first.annotations else (line, first)
            raise UserError(f'{lacks.where} has no "{key}" but {has.where} has; give it on every line or on none')
        for task in found.keys() & line.annotations.keys():
            given, names = line.annotations[task], found[task].setdefault(line.split, {})
            for name in [given] if task == "label" else given:
                names.setdefault(name, line.where)
        places.setdefault(line.split, Places()).add(place, _digest(raw, line))
    if first is None:
        raise UserError(f"{listing} has no lines; a dataset needs at least one image")
    for task, splits in found.items():
        _check_in_train(task, splits)
    classes = {task: sorted(set().union(*splits.values())) for task, splits in found.items()}
    if meaning is not None and "mask" not in first.annotations:
        raise UserError(f'--classes names those of masks, and {listing} has none; leave it out, or add "mask"')
    names = () if meaning is None else meaning.classes
    features = dataset.features(mask="mask" in first.annotations, classes=names)
    features["file"] = tfds.features.Text()
    if "label" in first.annotations:
        features["label"] = tfds.features.ClassLabel(names=classes["label"])
    if "labels" in first.annotations:
        if not classes["labels"]:
            raise UserError(f'{listing}: "labels" is empty on every line; leave the key out, or name some')
        features["labels"] = tfds.features.Sequence(tfds.features.ClassLabel(names=classes["labels"]))
    return places, classes, tfds.features.FeaturesDict(features)


def _check_in_train(task: str, found: Mapping[str, Found]) -> None:
    """For a class of another split that train has not: UserError where an image has one label, else a line on stderr.

    One label that cannot be learned is a mistake of the listing. Among many some are rare, and chance puts all images
    of one into a small split.
    """
    for split, names in found.items():
        alone = [name for name in names if name not in found.get(TRAIN, names)]  # without train, nothing is learned
        if alone:
            others = f" ({len(alone) - 1} more like it)" * (len(alone) > 1)
            message = f'{names[alone[0]]}: "{task}" {alone[0]!r} of split {split} is on no line of train{others}'
            if task == "label":
                raise UserError(f"{message}; give train images of every class, or remove those of {split}")
            print(f"{message}: probes cannot learn it, and the mean over classes counts it", file=sys.stderr)


def _digest(raw: bytes, line: Line) -> bytes:
    files = [line.path, line.annotations["mask"]] if "mask" in line.annotations else [line.path]
    return pictures.digest(raw.strip(), files)


def _record(line: Line, meaning: Meaning | None) -> Record | Bad:
    picture = pictures.read_image(line.path, f"{line.where}: {line.file}", "mend it, remove its line")
    if isinstance(picture, Bad):
        return picture
    example = {"image": picture.data, "file": line.file, **line.annotations}
    if "mask" in example:
        where = f"{line.where}: mask {example['mask']}"
        given = pictures.read_mask(example["mask"], where, picture.shape)
        example["mask"] = given.data if meaning is None else meaning.stored(given, where)
    return Record(example, candidates(line.captions, line.descriptions))
