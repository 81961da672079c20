"""Shards of work -> a TFDS dataset in ArrayRecord form: in processes, resumable, and only ever seen whole.

Work under way lies in OUTPUT.partial:
  command.json  what the command was asked for; another command is refused
  progress/     a JSON file for every whole shard: what it was made from, and its counts
  data/         the shards under their final names; becomes OUTPUT when all are whole

It stays when the command is killed, interrupted or meets bad input, as soon as it holds a whole shard: the same command
then keeps the shards whose input is unchanged and writes the others.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
import sys
from typing import Any, NamedTuple, Protocol

from array_record.python.array_record_module import ArrayRecordWriter
import tensorflow_datasets as tfds
from tqdm import tqdm

from tc_jepa.data.captions.candidates import Candidates
from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.prepare import statistics
from tc_jepa.data.prepare import workers as processes
from tc_jepa.data.prepare.statistics import Counts, Summary
from tc_jepa.data.prepared import VOCABULARY
from tc_jepa.errors import UserError
from tc_jepa.storage.files import refuse_existing, replace_text, replacing

FORMAT = 1  # of what a command writes: a partial of another format is not gone on with
SHARD_IMAGES, MOST_SHARDS = 1000, 512
DATASET = "captioned_images"
COMMAND, PROGRESS, DATA, LOCK = "command.json", "progress", "data", "lock"


class Shard(NamedTuple):
    """One file of the dataset, before it is written."""

    split: str
    index: int  # within its split
    digest: str  # of everything that its content depends on, apart from the command
    size: int  # in the units of the progress bar
    items: Any  # what the reader is to read

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}"


class Record(NamedTuple):
    """An image that is written: its features apart from "captions", and its candidates."""

    example: dict[str, Any]
    candidates: Candidates
    size: int = 1  # in the units of the progress bar


class Bad(NamedTuple):
    """An image that cannot be: an error, or with skip_bad left out and counted."""

    message: str
    mend: str
    size: int = 1


class Reader(Protocol):
    """Reads a shard's items, in their order. Pickles."""

    def read(self, items: Any) -> Iterator[Record | Bad]: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """What all shards share. Pickles. `words` is S, for the count of candidates that are longer."""

    reader: Reader
    features: tfds.features.FeaturesDict
    vocabulary: bytes | None
    words: int | None
    skip_bad: bool


@dataclasses.dataclass(frozen=True)
class Done:
    """What progress/ says of a whole shard."""

    digest: str
    examples: int
    example_bytes: int
    file_bytes: int
    skipped: list[str]
    summary: dict[str, Any]


def features(*, mask: bool, classes: Sequence[str] = ()) -> dict[str, tfds.features.FeatureConnector]:
    """What every dataset holds; `classes` are those of the masks, if they have names.

    Tasks go beside it, each under its name: prepared.PreparedSource finds them by type.
    """
    found = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "captions": tfds.features.Sequence(tfds.features.Text()),
    }
    if mask:
        form = {"shape": (None, None, 1), "encoding_format": "png"}
        # TFDS keeps the names of a LabeledImage in a text file beside the features.
        labelled = tfds.features.LabeledImage(labels=list(classes), **form) if classes else None
        found["mask"] = labelled or tfds.features.Image(**form)
    return found


def shard_size(count: int) -> int:
    """Images in each shard of a split of `count`: few enough to go on from, yet not too many shards.

    A reader keeps each shard's file open, and a process may often open 1,024. A power of two times SHARD_IMAGES, so
    that an image more or less does not move every shard's bounds.
    """
    size = SHARD_IMAGES
    while count > size * MOST_SHARDS:
        size *= 2
    return size


def spans(count: int) -> list[range]:
    """Which images of a split of `count` each of its shards holds."""
    size = shard_size(count)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def read_vocabulary(path: str | None) -> bytes | None:
    """Raises UserError where it is none that captions can be read with."""
    if path is None:
        return None
    CaptionTokenizer(path, words=2)
    return Path(path).read_bytes()


def write(
    output: Path, job: Job, shards: Sequence[Shard], command: dict[str, Any], *, workers: int, unit: str
) -> Summary:
    """Writes `shards` to the new folder `output`; the result does not depend on `workers`, 0 being this process.

    `command` identifies what was asked for, in JSON's types. Raises UserError for an existing output, a partial of
    another command or in use by one, and for what the reader finds, then saying what is kept.
    """
    refuse_existing(output)
    vocabulary = None if job.vocabulary is None else hashlib.blake2b(job.vocabulary, digest_size=8).hexdigest()
    command = {"format": FORMAT} | command | {"vocabulary": vocabulary, "words": job.words}
    with _partial(output, command) as partial:
        done = _kept(partial, shards, job.skip_bad)
        todo = [shard for shard in shards if shard.name not in done]
        if done:
            print(f"{partial}: {len(done)} of {len(shards)} shards are whole and stay", file=sys.stderr)
        total = sum(shard.size for shard in shards)
        left = sum(shard.size for shard in todo)
        try:
            with tqdm(total=total, initial=total - left, unit=f" {unit}", unit_scale=unit == "B") as progress:
                for shard, result in processes.run(ShardWriter(job, partial), todo, workers, progress.update):
                    done[shard.name] = result
                    for message in result.skipped:
                        progress.write(f"skipped {message}", file=sys.stderr)
        except UserError as error:
            whole = len(list((partial / PROGRESS).glob("*.json")))
            kept = f" ({whole} of {len(shards)} shards are whole: the same command goes on from there)" * bool(whole)
            raise UserError(f"{error}{kept}") from error
        summary = _finish(partial / DATA, job, shards, done, output)
        output.parent.mkdir(parents=True, exist_ok=True)
        (partial / DATA).rename(output)
    shutil.rmtree(partial)
    return summary


class ShardWriter:
    """Writes one shard after the other in one process. Pickles."""

    def __init__(self, job: Job, partial: Path):
        self._job, self._partial = job, partial
        self._tokenizer = None if job.vocabulary is None else CaptionTokenizer(job.vocabulary, words=2)

    def __call__(self, shard: Shard, advance: Callable[[int], None]) -> Done:
        """`advance` is told the size of everything that was read."""
        job, path = self._job, self._partial / DATA / _file_name(shard)
        serializer = tfds.core.example_serializer.ExampleSerializer(job.features.get_serialized_info())
        summary, skipped, example_bytes = _empty_summary(job), [], 0
        with replacing(path) as beside:
            # The option that TFDS writes with: records in groups of one, each readable without its neighbours.
            records = ArrayRecordWriter(os.fspath(beside), "group_size:1")
            try:
                for record in job.reader.read(shard.items):
                    if isinstance(record, Record):
                        serialized = self._serialized(record, serializer)
                        records.write(serialized)
                        example_bytes += len(serialized)
                        self._count(record.candidates, shard.split, summary)
                    elif job.skip_bad:
                        skipped.append(record.message)
                        summary.skipped += 1
                    else:
                        raise UserError(f"{record.message}; {record.mend}, or pass --skip_bad")
                    advance(record.size)
            finally:
                records.close()
        examples = summary.images.total()
        done = Done(shard.digest, examples, example_bytes, path.stat().st_size, skipped, summary.as_json())
        replace_text(self._partial / PROGRESS / f"{shard.name}.json", json.dumps(dataclasses.asdict(done)))
        return done

    def _serialized(self, record: Record, serializer: tfds.core.example_serializer.ExampleSerializer) -> bytes:
        example = record.example | {"captions": list(record.candidates.texts)}
        proto = serializer.get_tf_example(self._job.features.encode_example(example))
        return proto.SerializeToString(deterministic=True)  # else a process orders features its own way

    def _count(self, candidates: Candidates, split: str, summary: Summary) -> None:
        lengths = None if self._tokenizer is None else self._tokenizer.lengths(candidates.texts)
        summary.count(split, candidates.texts, lengths)
        summary.blank += candidates.blank
        summary.duplicates += candidates.duplicates


@contextlib.contextmanager
def _partial(output: Path, command: dict[str, Any]) -> Iterator[Path]:
    """The folder of work under way, held by this command alone. When the block fails, it stays if it has a shard."""
    folder = output.with_name(f"{output.name}.partial")
    missing = [parent for parent in output.absolute().parents if not parent.exists()]
    if folder.exists() and not (folder / COMMAND).is_file():
        raise UserError(f"{folder} is no work of this command but in its way; move it, or give another --output")
    try:
        for part in (DATA, PROGRESS):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be made ({error.strerror}); give another") from error
    with open(folder / LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder} is being written by another command; wait for it, or give another --output"
            ) from error
        if any((folder / PROGRESS).glob("*.json")):
            _check_command(folder, command)
        else:
            replace_text(folder / COMMAND, json.dumps(command, indent=1) + "\n")
        try:
            yield folder
        except BaseException:
            if not any((folder / PROGRESS).glob("*.json")):
                shutil.rmtree(folder)
                for parent in missing:
                    parent.rmdir()
            raise


def _check_command(folder: Path, command: dict[str, Any]) -> None:
    before, now = json.loads((folder / COMMAND).read_text()), json.loads(json.dumps(command))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        changes = ", ".join(f"{name} (there {before.get(name)}, here {now.get(name)})" for name in names)
        raise UserError(
            f"{folder} holds the work of another command: {changes}; give the same, another --output, or remove it"
        )


def _kept(partial: Path, shards: Sequence[Shard], skip_bad: bool) -> dict[str, Done]:
    """By name, the shards that are whole and as they would be written now. Whatever else lies there is removed."""
    planned = {shard.name: shard for shard in shards}
    done, files = {}, set()
    for record in sorted((partial / PROGRESS).iterdir()):
        shard = planned.get(record.stem)
        if record.suffix == ".json" and shard is not None:
            was, path = Done(**json.loads(record.read_text())), partial / DATA / _file_name(shard)
            unchanged = was.digest == shard.digest and (skip_bad or not was.skipped)
            if unchanged and path.exists() and path.stat().st_size == was.file_bytes:
                done[shard.name] = was
                files.add(path.name)
                continue
        record.unlink()
    for path in (partial / DATA).iterdir():
        if path.name not in files:
            path.unlink()
    return done


def _finish(folder: Path, job: Job, shards: Sequence[Shard], done: dict[str, Done], output: Path) -> Summary:
    """Writes what a dataset holds beside its shards."""
    summary = _empty_summary(job)
    for result in done.values():
        summary.add(Summary.from_json(result.summary))
    if not summary.images:
        shutil.rmtree(folder.with_name(PROGRESS))  # nothing to go on from
        raise UserError(f"{output} would be empty: no image decodes ({summary.skipped} skipped)")
    infos = []
    for split in dict.fromkeys(shard.split for shard in shards):
        members = [shard for shard in shards if shard.split == split]
        results = [done[shard.name] for shard in members]
        if not summary.images[split]:
            for shard in members:
                (folder / _file_name(shard)).unlink()
            continue
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[result.examples for result in results],
                num_bytes=sum(result.example_bytes for result in results),
                filename_template=_template(split, folder),
            )
        )
    identity = tfds.core.DatasetIdentity(
        name=DATASET, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="tc_jepa.data.prepare"
    )
    info = tfds.core.DatasetInfo(builder=identity, features=job.features)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict(infos))
    info.write_to_directory(folder)
    if job.vocabulary is not None:
        (folder / VOCABULARY).write_bytes(job.vocabulary)
    statistics.write(summary, folder)
    return summary


def _empty_summary(job: Job) -> Summary:
    return Summary(words=None if job.vocabulary is None else Counts(), longest=job.words)


def _file_name(shard: Shard) -> str:
    return _template(shard.split, Path()).sharded_filepath(shard_index=shard.index, num_shards=None).name


def _template(split: str, folder: Path) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        dataset_name=DATASET,
        data_dir=folder,
        split=split,
        filetype_suffix=tfds.core.FileFormat.ARRAY_RECORD.file_suffix,
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",  # without their number, which stays open to the end
    )
