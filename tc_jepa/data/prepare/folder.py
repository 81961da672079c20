"""Images in a folder and a captions.jsonl that lists them."""

from array import array
from collections.abc import Iterator, Mapping
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
import sys
from typing import Any, NamedTuple
import unicodedata

from tc_jepa.data import prepared
from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.prepare import dataset, pictures, texts
from tc_jepa.data.prepare.dataset import BadImage, Record, Shard
from tc_jepa.data.prepare.pictures import DIGEST_BYTES, MaskPair, MaskValues, read_mask_values
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.sources import LabelSet, Question, SPLITS, TRAIN
from tc_jepa.errors import UserError

ANY_KIND, ALL = "any", "all"  # of questions that do not say theirs; what scores call all kinds together
QUESTIONS = "questions"  # a key of a line
KINDS = {"label": "single", "labels": "multi"}  # task, which is a key of a line -> kind

ClassLines = dict[str, str]  # by class, the first line that has it


class Listing(NamedTuple):
    """A captions.jsonl and the folder of its images. `name`, where it was made of other files, is for messages."""

    path: Path
    root: Path  # resolved
    name: str = ""

    def where(self, number: int) -> str:
        return self.name or f"{self.path}:{number}"


class Line(NamedTuple):
    """One line of captions.jsonl, checked as far as possible without opening an image."""

    where: str  # Listing.where, for messages
    file: str
    path: Path
    split: str
    captions: list[str]
    descriptions: list[str]
    labels: dict[str, Any]  # label (str) and labels (list of str), if the line has them
    questions: list[Question]
    pair: MaskPair | None

    @property
    def annotations(self) -> set[str]:
        return self.labels.keys() | ({"mask"} if self.pair else set())


class SplitLines:
    """The positions of the lines of a split and a digest of each, packed: a dataset may have tens of millions."""

    def __init__(self):
        self.numbers, self.offsets, self.digests = array("Q"), array("Q"), bytearray()

    def add(self, number: int, offset: int, digest: bytes) -> None:
        """`number` counts from 1, `offset` is in bytes."""
        self.numbers.append(number)
        self.offsets.append(offset)
        self.digests += digest

    def shards(self, split: str, form: Mapping[str, Any]) -> Iterator[Shard]:
        """The shards of the split. `form`, the classes and features, enters their digests: a new class changes all."""
        head = json.dumps(form).encode()
        for index, span in enumerate(dataset.spans(len(self.numbers))):
            numbers, offsets = self.numbers[span.start : span.stop], self.offsets[span.start : span.stop]
            lines = self.digests[span.start * DIGEST_BYTES : span.stop * DIGEST_BYTES]
            digest = hashlib.blake2b(head + lines, digest_size=DIGEST_BYTES).hexdigest()
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
    """Writes the images that `captions` lists, with everything that it says of them, to the new folder `output`.

    sources.SOURCES["folder"] describes `captions`, a captions.jsonl. A file is listed once, because twice could put it
    in two splits; labels and masks are on every line or on none, because all images answer the same questions. Without
    `classes`, which are as in prepare_segmentation, the values of masks are class indices without names.

    `vocabulary`, a SentencePiece model with T5's ids, is stored with the data; with it and `words`, S, the candidates
    of more than S tokens are counted. Images that do not decode are an error, or with `skip_bad` are reported on
    stderr, left out and counted. The work is done in `workers` processes, 0: in this one; the result is the same.

    Raises UserError, which names the file and line. Interrupted work can be resumed (dataset.write).
    """
    folder, listing = Path(images), Path(captions)
    if not folder.is_dir():
        raise UserError(f"--images={folder} is not a folder; give the one that the files in {listing} are relative to")
    if not listing.is_file():
        raise UserError(f"--captions={listing} is not a file; give one with a JSON object per line")
    model, root = dataset.read_vocabulary(vocabulary), folder.resolve()
    values = None if classes is None else read_mask_values(classes, first_class, ignore_index)
    settings = {"source": "folder", "images": str(root), "captions": str(listing.resolve())}
    if classes is not None:
        settings |= {"classes": str(Path(classes).resolve()), "first_class": first_class, "ignore_index": ignore_index}
    return prepare_listing(Listing(listing, root), output, settings, model, values, skip_bad, words, workers)


def prepare_listing(
    listing: Listing,
    output: str,
    settings: dict[str, Any],
    vocabulary: bytes | None,
    values: MaskValues | None,
    skip_bad: bool,
    words: int | None,
    workers: int,
) -> Summary:
    """The same for a listing that is known to be there. `settings` identify the command (dataset.write)."""
    survey = _survey(listing)
    if values is not None and "mask" not in survey.annotations:
        reason = f'--classes names classes of masks, but {listing.path} has no "mask"'
        raise UserError(f"{reason}; leave it out, or add masks")
    form = survey.classes if values is None else survey.classes | {"mask": dataclasses.asdict(values)}
    form = form | {QUESTIONS: True} if survey.asks else form
    shards = [shard for split, lines in survey.splits.items() for shard in lines.shards(split, form)]
    tasks = {
        task: LabelSet(kind, tuple(survey.classes[task])) for task, kind in KINDS.items() if task in survey.annotations
    }
    names = () if values is None else values.classes
    mask = names if "mask" in survey.annotations else None
    features = dataset.features(tasks, mask=mask, questions=survey.asks)
    read = functools.partial(_read, listing, values, survey.asks)
    spec = dataset.DatasetSpec(read, features, vocabulary, words, skip_bad)
    return dataset.write(output, spec, shards, settings, workers)


def _read(
    listing: Listing, values: MaskValues | None, asks: bool, items: tuple[array, array]
) -> Iterator[Record | BadImage]:
    """Reads the images that some lines of the file name. `asks`: records have questions."""
    fix = "correct it" if listing.name else "correct it, remove its line"
    with open(listing.path, "rb") as file:
        for number, offset in zip(*items):
            file.seek(offset)
            line = _parse(file.readline(texts.LIMIT), listing.where(number), listing.root)
            where = f"{line.where}: {line.file}"
            example = {"file": line.file, **line.labels}
            if asks:
                example[prepared.QUESTIONS_FEATURE] = [json.dumps(question._asdict()) for question in line.questions]
            record = Record(example, candidates(line.captions, line.descriptions))
            yield pictures.read_record(line.path, where, fix, record, line.pair, values)


# Reading captions.jsonl


def _lines(listing: Listing) -> Iterator[tuple[int, int, bytes]]:
    """The lines that are not blank, each with its number and offset. A line of gigabytes is refused unread."""
    offset = 0
    with open(listing.path, "rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(texts.LIMIT + 1), b""), 1):
            if len(raw) > texts.LIMIT:
                size = f"{texts.LIMIT >> 20} MiB"
                raise UserError(
                    f"{listing.where(number)} is longer than {size}; write one JSON object per line and image"
                )
            if raw.strip():
                yield number, offset, raw
            offset += len(raw)


def _parse(raw: bytes, where: str, root: Path) -> Line:
    entry = texts.parse(raw, where, 'write {"file": "...", "captions": ["..."]} on one line')
    for key in ("file", "captions"):
        if key not in entry:
            raise UserError(f'{where} has no "{key}"; every line needs "file" and "captions", a list that may be empty')
    split = entry.get("split", TRAIN)
    if split not in SPLITS:
        raise UserError(f'{where}: "split" is {split!r}; it must be one of {", ".join(SPLITS)}')
    labels: dict[str, Any] = {}
    if "label" in entry:
        labels["label"] = texts.class_name(texts.string(entry["label"], "label", where), where)
    if "labels" in entry:
        names = texts.strings(entry["labels"], "labels", where)
        labels["labels"] = sorted({texts.class_name(name, where) for name in names})
    mask = _path_inside(root, entry["mask"], "mask", where) if "mask" in entry else None
    captions = texts.strings(entry["captions"], "captions", where)
    descriptions = texts.string_or_strings(entry.get("descriptions", []), "descriptions", where)
    path = _path_inside(root, entry["file"], "file", where)
    pair = None if mask is None else MaskPair(path, mask, f"{where}: mask {mask}")
    questions = _questions(entry.get(QUESTIONS, []), where)
    return Line(where, entry["file"], path, split, captions, descriptions, labels, questions, pair)


def _questions(value: Any, where: str) -> list[Question]:
    form = '{"question": "...", "answers": ["..."]}, and "kind" if it has one'
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UserError(f'{where}: "{QUESTIONS}" is not a list of objects; write each as {form}')
    found = []
    for one in value:
        if not one.keys() >= {"question", "answers"}:
            raise UserError(f'{where}: a question has no "question" or no "answers"; write {form}')
        text = texts.string(one["question"], "question", where).strip(" ?")
        answers = tuple(texts.strings(one["answers"], "answers", where))
        if not text or not answers:
            raise UserError(f"{where}: a question has no text or no answer; write {form}, or remove it")
        kind = texts.class_name(texts.string(one.get("kind", ANY_KIND), "kind", where), where)
        if kind == ALL:
            raise UserError(f'{where}: the kind of a question is "{ALL}", which stands for all kinds; give another')
        found.append(Question(text, answers, kind))
    return found


def _path_inside(root: Path, value: Any, key: str, where: str) -> Path:
    relative = texts.string(value, key, where)
    named = f'{where}: "{key}" {relative!r}'
    try:
        # macOS writes names in Unicode's form NFD, most other programs in NFC; the same name is meant.
        forms = dict.fromkeys((relative, *(unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))))
        paths = [(root / form).resolve() for form in forms]
        path = next((path for path in paths if path.exists()), paths[0])
    except (ValueError, OSError, RuntimeError) as error:  # a null byte, a name that is too long, circular links
        raise UserError(f"{named} is not a usable path ({error}); correct it") from error
    if Path(relative).is_absolute() or not path.is_relative_to(root):
        raise UserError(f"{named} leaves the images folder; give a path inside {root}")
    if not path.exists():
        raise UserError(f"{named} is missing from {root}; add the file or remove the line")
    if not path.is_file():
        raise UserError(f"{named} is a folder, pipe, socket or device, not a file; correct it or remove the line")
    return path


class Survey(NamedTuple):
    """What a listing holds."""

    splits: dict[str, SplitLines]  # checked
    classes: dict[str, list[str]]  # of "label" and "labels"
    annotations: set[str]  # which of these and "mask" every line has
    asks: bool  # whether any line has questions


def _survey(listing: Listing) -> Survey:
    splits, first, asks = {}, None, False
    numbers: dict[str, int] = {}  # by image, its line
    found: dict[str, dict[str, ClassLines]] = {task: {} for task in KINDS}  # by task and split
    pairs: list[MaskPair] = []
    for number, offset, raw in _lines(listing):
        line = _parse(raw, listing.where(number), listing.root)
        first, asks = first or line, asks or bool(line.questions)
        before = numbers.setdefault(str(line.path), number)
        if before != number:
            raise UserError(f"{line.where}: {line.file} is already on line {before}; put its captions on one line")
        for key in sorted(first.annotations ^ line.annotations):
            has, lacks = (first, line) if key in first.annotations else (line, first)
            raise UserError(f'{lacks.where} has no "{key}" but {has.where} has; give it on every line or on none')
        for task, given in line.labels.items():
            names = found[task].setdefault(line.split, {})
            for name in [given] if task == "label" else given:
                names.setdefault(name, line.where)
        if line.pair:
            pairs.append(line.pair)
        files = [line.path, line.pair.mask] if line.pair else [line.path]
        splits.setdefault(line.split, SplitLines()).add(number, offset, pictures.digest(raw.strip(), files))
    if first is None:
        raise UserError(f"{listing.path} has no lines; a dataset needs at least one image")
    for task, by_split in found.items():
        _check_in_train(task, by_split)
    classes = {task: sorted(set().union(*by_split.values())) for task, by_split in found.items()}
    if "labels" in first.annotations and not classes["labels"]:
        raise UserError(f'{listing.path}: "labels" is empty on every line; leave out the key, or add labels')
    pictures.check_mask_sizes(pairs)
    return Survey(splits, classes, first.annotations, asks)


def _check_in_train(task: str, found: Mapping[str, ClassLines]) -> None:
    """Reports a class of another split that train does not have: UserError for "label", a line on stderr for "labels".

    The former is a mistake in the listing. Of a rare one among many labels a small split may get all images by chance.
    """
    for split, names in found.items():
        alone = [name for name in names if name not in found.get(TRAIN, names)]  # without train, nothing is learned
        if alone:
            others = f" ({len(alone) - 1} more like it)" * (len(alone) > 1)
            message = f'{names[alone[0]]}: "{task}" {alone[0]!r} of split {split} is on no line of train{others}'
            if task == "label":
                raise UserError(f"{message}; give train images of every class, or remove those of {split}")
            print(f"{message}: probes cannot learn it, and the mean over classes counts it", file=sys.stderr)
