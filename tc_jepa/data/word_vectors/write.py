"""Writing word vectors, in the format of words.py, from any text encoder that a function can call."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import safetensors
from tqdm import tqdm

from tc_jepa.data.prepared import Features, PreparedSource, splits, USUAL_FEATURES
from tc_jepa.data.word_vectors.folder import (
    DTYPES,
    FORMAT,
    is_finite,
    pack,
    Shard,
    short,
    STAMP_FILE,
    unpack,
    VERSION,
    WordsFolder,
    WordsStamp,
)
from tc_jepa.errors import UserError
from tc_jepa.storage.files import replace_text

Encode = Callable[[list[str]], Sequence[np.ndarray]]

IMAGES_PER_SHARD = 4096  # what a kill loses at most
IMAGES_PER_CALL = 256  # of the encoder
BEGUN_FILE = "begun.json"  # the stamp and the finished shards of a folder that is not whole yet


def write_words(
    data: str,
    output: str,
    encode: Encode,
    stamp: WordsStamp,
    images_per_shard: int = IMAGES_PER_SHARD,
    features: Features = USUAL_FEATURES,
) -> dict[str, int]:
    """Encodes all captions of all splits of the prepared folder `data` into the folder `output`.

    `features` names those with the captions where they are not the usual ones; a run names the same.

    `encode` is called with up to a few thousand captions and returns a vector for each word of
    each: floating arrays [words, E], 1 <= words <= stamp.words and E = stamp.width. They must not depend on what else
    is in the call.

    Works in OUTPUT.partial, which takes its name when whole. A call that was cut short leaves
    finished shards there, and the same call goes on from them. A finished `output` of the same stamp is left alone.
    Returns the number of images by split. UserError where `output` is something else or the work was begun otherwise,
    where `data` is no prepared folder, and where `encode` returns what cannot be stored.
    """
    if stamp.dtype not in DTYPES or min(stamp.words, stamp.width) < 1:
        raise UserError(f"{stamp} cannot be stored: words and width are at least 1, dtype one of {', '.join(DTYPES)}")
    sources = {split: PreparedSource(data, split, features) for split in splits(data)}
    counts = {split: len(source) for split, source in sources.items()}
    if os.path.lexists(output):
        _check_finished(Path(output), stamp, counts)
        return counts
    settings = dataclasses.asdict(stamp) | counts | {"images per shard": images_per_shard}
    with (
        _begun(Path(output), settings) as (folder, finished),
        tqdm(total=sum(counts.values()), unit=" images") as bar,
    ):
        shards: dict[str, list] = {split: [] for split in sources}
        for split, source in sources.items():
            total = -(-len(source) // images_per_shard)
            for number in range(total):
                images = range(len(source))[number * images_per_shard : (number + 1) * images_per_shard]
                path = folder / f"{split}-{number:05d}-of-{total:05d}.array_record"
                if path.name in finished:
                    _check_shard(path, finished[path.name], source, images, stamp)
                    bar.update(len(images))
                else:
                    records = _records(source, images, encode, stamp, f"{data}, split {split}")
                    finished[path.name] = _write_shard(path, records, len(images), bar)
                    _write_begun(folder, settings, finished)
                shards[split].append(finished[path.name]._asdict())
        head = {"format": FORMAT, "version": VERSION} | dataclasses.asdict(stamp)
        replace_text(folder / STAMP_FILE, json.dumps(head | {"splits": shards}, indent=1) + "\n")
        (folder / BEGUN_FILE).unlink()
        folder.rename(output)
    return counts


def work_folder(output: Path) -> Path:
    """Where an unfinished `output` is being made."""
    return output.with_name(f"{output.name}.partial")


# The encoder's answers


def _records(source: PreparedSource, images: range, encode: Encode, stamp: WordsStamp, name: str) -> Iterator[bytes]:
    for start in range(0, len(images), IMAGES_PER_CALL):
        called = images[start : start + IMAGES_PER_CALL]
        candidates = [source.captions(image) for image in called]
        texts = [caption for captions in candidates for caption in captions]
        answers = list(encode(texts)) if texts else []
        if len(answers) != len(texts):
            raise UserError(
                f"the encoder returned {len(answers)} arrays for {len(texts)} captions; return one for each"
            )
        remaining = iter(answers)
        for image, captions in zip(called, candidates):
            where = f"{name}, image {image}"
            vectors = [_checked(next(remaining), stamp, f"{where}, {text[:60]!r}") for text in captions]
            yield pack(vectors, captions, stamp)


def _checked(vectors: np.ndarray, stamp: WordsStamp, where: str) -> np.ndarray:
    """One caption's vectors in the stored type."""
    shape = np.shape(vectors)
    if len(shape) != 2 or shape[1] != stamp.width or not 1 <= shape[0] <= stamp.words:
        raise UserError(f"{where}: the encoder returned shape {shape}, not 1 to {stamp.words} words by {stamp.width}")
    form = DTYPES[stamp.dtype]
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, form.numpy)
    if not is_finite(stored, form):
        raise UserError(f"{where}: the vectors are not all finite in {stamp.dtype}; mend the encoder, or take bfloat16")
    return stored


# Shards


def _write_shard(path: Path, records: Iterator[bytes], images: int, bar: tqdm) -> Shard:
    beside = path.with_name(f"{path.name}.tmp")
    with _named_failure(path):
        writer = ArrayRecordWriter(str(beside), "group_size:1")
    try:
        for record in records:
            with _named_failure(path):
                writer.write(record)
            bar.update()
        with _named_failure(path):
            writer.close()
            with open(beside, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = beside.stat().st_size
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return Shard(path.name, images, size, sha256)


@contextlib.contextmanager
def _named_failure(path: Path):
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be written ({reason}); make room, then run the same again") from error


def _check_shard(path: Path, shard: Shard, source: PreparedSource, images: range, stamp: WordsStamp) -> None:
    """UserError where a shard of an earlier call is not of the data's captions any more."""
    try:
        if shard.images != len(images) or path.stat().st_size != shard.bytes:
            raise ValueError(f"it should have {len(images)} images in {shard.bytes} bytes")
        records = ArrayRecordDataSource([f"{path}[0:{shard.images}]"])
        for place in {0, shard.images - 1}:
            unpack(records[place], source.captions(images[place]), stamp)
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be gone on from: {reason}; remove {path.parent} to begin anew") from error


# The folder


@contextlib.contextmanager
def _begun(output: Path, settings: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Shard]]]:
    """The work folder of `output`, held against a second process, and the shards that are finished in it."""
    folder = work_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); give another output") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing {output}; wait for it, or give another output") from error
        try:
            yield folder, _read_begun(folder, settings)
        except BaseException:
            if not (folder / BEGUN_FILE).exists():  # nothing in it is of use to another call
                shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(held)


def _write_begun(folder: Path, settings: dict[str, Any], finished: dict[str, Shard]) -> None:
    content = {"settings": settings, "shards": [shard._asdict() for shard in finished.values()]}
    replace_text(folder / BEGUN_FILE, json.dumps(content, indent=1) + "\n")


def _read_begun(folder: Path, settings: dict[str, Any]) -> dict[str, Shard]:
    path = folder / BEGUN_FILE
    if not path.exists():
        return {}
    begun = json.loads(path.read_text())
    if changes := _changes(begun["settings"], settings):
        raise UserError(f"{folder} was begun with other settings: {changes}; remove it, or give another output")
    return {shard["file"]: Shard(**shard) for shard in begun["shards"]}


def _check_finished(output: Path, stamp: WordsStamp, counts: dict[str, int]) -> None:
    """UserError where `output` is anything but the finished vectors that are asked for."""
    if not (output / STAMP_FILE).is_file():
        raise UserError(f"{output} exists already; give a new folder, or remove that one first")
    words = WordsFolder(str(output))
    if changes := _changes(dataclasses.asdict(words.stamp) | words.counts, dataclasses.asdict(stamp) | counts):
        raise UserError(f"{output} exists already, of other settings: {changes}; give another output, or remove it")


def _changes(then: dict[str, Any], now: dict[str, Any]) -> str:
    changed = [key for key in then | now if then.get(key) != now.get(key)]
    return ", ".join(f"{key} (there {short(then.get(key))}, here {short(now.get(key))})" for key in changed)
