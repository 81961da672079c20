"""Writing a TFDS dataset in ArrayRecord form: shard by shard, in several processes, resumable (storage/partial.py).

A shard is kept when the command is run again and its digest, which covers all of its input, is the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import os
from pathlib import Path
import sys
from typing import Any, NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
import tensorflow_datasets as tfds
from tqdm import tqdm

from tc_jepa.data.captions.candidates import Candidates
from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.prepare import statistics
from tc_jepa.data.prepare import workers as processes
from tc_jepa.data.prepare.statistics import Counts, Summary
from tc_jepa.data.prepared import QUESTIONS_FEATURE, VOCABULARY
from tc_jepa.data.sources import LabelSet
from tc_jepa.errors import UserError
from tc_jepa.storage.faults import writing
from tc_jepa.storage.files import refuse_existing, replacing
from tc_jepa.storage.partial import DATA, delete_record, partial_path, PartialFolder, write_record

FORMAT = 1  # of the written files: unfinished work in another format is refused
SHARD_IMAGES, MOST_SHARDS = 1000, 512
DATASET = "captioned_images"


class Shard(NamedTuple):
    """One file of the dataset, before it is written."""

    split: str
    index: int  # within its split
    digest: str  # of everything that its content depends on, apart from the command's settings
    size: int  # in the units of the progress bar
    items: Any  # what the reader reads

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}"


class Record(NamedTuple):
    """An image to write: its features without "captions", and its candidate captions."""

    example: dict[str, Any]
    candidates: Candidates = Candidates((), blank=0, duplicates=0)
    size: int = 1  # in the units of the progress bar


class BadImage(NamedTuple):
    """An image that cannot be read: an error, or with skip_bad left out and counted. `fix` says what to do about it."""

    message: str
    fix: str
    size: int = 1


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What all shards of a dataset share. Pickles. `read` reads the items of a shard in order."""

    read: Callable[[Any], Iterator[Record | BadImage]]
    features: tfds.features.FeaturesDict
    vocabulary: bytes | None = None
    words: int | None = None  # S, to count the candidates that are longer
    skip_bad: bool = False
    unit: str = "images"  # of the sizes of records


@dataclasses.dataclass(frozen=True)
class FinishedShard:
    """What is stored about a finished shard."""

    digest: str
    examples: int
    example_bytes: int
    file_bytes: int
    skipped: list[str]
    summary: dict[str, Any]


def features(
    tasks: Mapping[str, LabelSet], *, file=True, mask: Sequence[str] | None = None, questions=False
) -> tfds.features.FeaturesDict:
    """The features image and captions, the file's name, a mask with its classes' names, questions, and labels by task.

    `mask` is () for classes without names, None for no mask. prepared.PreparedSource finds label features by type.
    """
    found = {"image": tfds.features.Image(shape=(None, None, 3))}
    found["captions"] = tfds.features.Sequence(tfds.features.Text())
    if mask is not None:
        form = {"shape": (None, None, 1), "encoding_format": "png"}
        # TFDS stores the class names of a LabeledImage in a text file beside the features.
        labelled = tfds.features.LabeledImage(labels=list(mask), **form) if mask else None
        found["mask"] = labelled or tfds.features.Image(**form)
    if file:
        found["file"] = tfds.features.Text()
    if questions:  # as JSON: TFDS reads no sequences of sequences without TensorFlow
        found[QUESTIONS_FEATURE] = tfds.features.Sequence(tfds.features.Text())
    for name, task in tasks.items():
        label = tfds.features.ClassLabel(names=task.classes)
        found[name] = label if task.kind == "single" else tfds.features.Sequence(label)
    return tfds.features.FeaturesDict(found)


def spans(count: int) -> list[range]:
    """The images in each shard of a split with `count` images.

    Shards are small, so that a kill loses little, but not too many: a reader keeps the file of each open, and a process
    may often open only 1,024. Their size is SHARD_IMAGES times a power of two: one image more rarely moves all bounds.
    """
    size = SHARD_IMAGES
    while count > size * MOST_SHARDS:
        size *= 2
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def read_vocabulary(path: str | None) -> bytes | None:
    """Raises UserError for a file that is not a SentencePiece model with T5's ids."""
    if path is None:
        return None
    CaptionTokenizer(path, words=2)
    return Path(path).read_bytes()


def write(output: str, spec: DatasetSpec, shards: Sequence[Shard], settings: dict[str, Any], workers: int) -> Summary:
    """Writes `shards` to the new folder `output`. The result does not depend on `workers`; 0 uses this process only.

    `settings` identify the command, in JSON's types. Raises UserError for an existing output, for unfinished work of
    another command or in use by one, and for bad images, after saying how many shards are finished.
    """
    output = Path(output)
    refuse_existing(output)
    vocabulary = None if spec.vocabulary is None else hashlib.blake2b(spec.vocabulary, digest_size=8).hexdigest()
    settings = {"format": FORMAT} | settings | {"vocabulary": vocabulary, "words": spec.words}
    with PartialFolder(partial_path(output), settings) as partial:
        done = _reusable(partial, shards, spec.skip_bad)
        todo = [shard for shard in shards if shard.name not in done]
        if done:
            print(f"{partial.path}: continuing, {len(done)} of {len(shards)} shards are finished", file=sys.stderr)
        total, left = (sum(shard.size for shard in some) for some in (shards, todo))
        write_one = functools.partial(_write_shard, spec, partial.path)
        try:
            with tqdm(total=total, initial=total - left, unit=f" {spec.unit}", unit_scale=spec.unit == "B") as progress:
                for shard, result in processes.run(write_one, todo, workers, progress.update):
                    done[shard.name] = result
                    for message in result.skipped:
                        progress.write(f"skipped {message}", file=sys.stderr)
        except UserError as error:
            count = len(partial.records())
            kept = f" ({count} of {len(shards)} shards are finished: the same command continues there)" * bool(count)
            raise type(error)(f"{error}{kept}", about=error.about) from error
        summary = _empty_summary(spec)
        for result in done.values():
            summary.add(Summary.from_json(result.summary))
        if not summary.images:
            for path in partial.pieces():
                path.unlink()  # nothing to continue from
            raise UserError(f"{output} would be empty: no image decodes ({summary.skipped} skipped)")
        _write_metadata(partial.data, spec, shards, done, summary)
        partial.finish(output)
    return summary


def _write_shard(spec: DatasetSpec, partial: Path, shard: Shard, advance: Callable[[int], None]) -> FinishedShard:
    """Writes a shard into the PartialFolder `partial`; `advance` gets each item's size. UserError for a bad image."""
    path = partial / DATA / _file_name(shard)
    serializer = tfds.core.example_serializer.ExampleSerializer(spec.features.get_serialized_info())
    tokenizer = None if spec.vocabulary is None else CaptionTokenizer(spec.vocabulary, words=2)
    summary, skipped, example_bytes = _empty_summary(spec), [], 0
    with replacing(path) as beside:
        # The option that TFDS writes with: each record can be read without its neighbours.
        records = ArrayRecordWriter(os.fspath(beside), "group_size:1")
        try:
            for record in spec.read(shard.items):
                if isinstance(record, Record):
                    example = record.example | {"captions": list(record.candidates.texts)}
                    proto = serializer.get_tf_example(spec.features.encode_example(example))
                    # Not deterministic, the order of features would differ between processes.
                    serialized = proto.SerializeToString(deterministic=True)
                    records.write(serialized)
                    example_bytes += len(serialized)
                    summary.count(shard.split, record.candidates, tokenizer)
                elif spec.skip_bad:
                    skipped.append(record.message)
                    summary.skipped += 1
                else:
                    raise UserError(f"{record.message}; {record.fix}, or pass --skip_bad")
                advance(record.size)
        finally:
            records.close()
    examples = summary.images.total()
    done = FinishedShard(shard.digest, examples, example_bytes, path.stat().st_size, skipped, summary.as_json())
    write_record(partial, shard.name, dataclasses.asdict(done))
    return done


def _reusable(partial: PartialFolder, shards: Sequence[Shard], skip_bad: bool) -> dict[str, FinishedShard]:
    """By name, the finished shards that would be written the same now. Deletes all others."""
    sizes = {path.name: path.stat().st_size for path in partial.data.iterdir()}
    records = {name: FinishedShard(**values) for name, values in partial.records().items()}
    done, files = {}, set()
    for shard in shards:
        was, file = records.get(shard.name), _file_name(shard)
        same = was is not None and was.digest == shard.digest and sizes.get(file) == was.file_bytes
        if same and (skip_bad or not was.skipped):
            done[shard.name] = was
            files.add(file)
    for name in records.keys() - done.keys():
        delete_record(partial.path, name)
    for name in sizes.keys() - files:
        (partial.data / name).unlink()
    return done


def _write_metadata(
    folder: Path, spec: DatasetSpec, shards: Sequence[Shard], done: dict[str, FinishedShard], summary: Summary
) -> None:
    """Writes the files of a dataset beside its shards. Splits without images are left out."""
    infos = []
    for split in dict.fromkeys(shard.split for shard in shards):
        members = [shard for shard in shards if shard.split == split]
        if not summary.images[split]:
            for shard in members:
                (folder / _file_name(shard)).unlink()
            continue
        lengths = [done[shard.name].examples for shard in members]
        size, template = sum(done[shard.name].example_bytes for shard in members), _template(split, folder)
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
    identity = tfds.core.DatasetIdentity(
        name=DATASET, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="tc_jepa.data.prepare"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=spec.features)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    with writing(folder):
        info.write_to_directory(folder)
        if spec.vocabulary is not None:
            (folder / VOCABULARY).write_bytes(spec.vocabulary)
        statistics.write(summary, folder)


def _empty_summary(spec: DatasetSpec) -> Summary:
    return Summary(words=None if spec.vocabulary is None else Counts(), longest=spec.words)


def _file_name(shard: Shard) -> str:
    return _template(shard.split, Path()).sharded_filepath(shard_index=shard.index, num_shards=None).name


def _template(split: str, folder: Path) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        dataset_name=DATASET,
        data_dir=folder,
        split=split,
        filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",  # without the number of shards, known only at the end
    )
