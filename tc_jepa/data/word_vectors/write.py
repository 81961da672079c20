"""Writing word vectors, in the format of folder.py, from any text encoder that can be called as a function."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
import numpy as np
import safetensors
from tqdm import tqdm

from tc_jepa.data.prepared import DEFAULT_FEATURES, FeatureNames, PreparedSource, splits
from tc_jepa.data.word_vectors import folder
from tc_jepa.data.word_vectors.folder import DTYPES, INFO_FILE, VectorShard, WordVectorFolder, WordVectorInfo
from tc_jepa.errors import UserError
from tc_jepa.storage.files import replace_text, replacing
from tc_jepa.storage.partial import ALONE, describe_changes, partial_path, PartialFolder, Processes, write_record

Encode = Callable[[list[str]], Sequence[np.ndarray]]

IMAGES_PER_SHARD = 4096  # the most that is lost when the program is killed
IMAGES_PER_CALL = 256  # of the encoder


def write_word_vectors(
    data: str,
    output: str,
    encode: Encode,
    info: WordVectorInfo,
    images_per_shard: int = IMAGES_PER_SHARD,
    features: FeatureNames = DEFAULT_FEATURES,
    processes: Processes = ALONE,
) -> dict[str, int]:
    """Encodes all captions of all splits of the prepared folder `data` into the folder `output`.

    `encode` is called with up to a few thousand captions. For each it returns one vector per word: a floating array
    [words, E] with 1 <= words <= info.words and E = info.width, which must not depend on the other captions in the
    call. `features` names the caption features, as the run must too.

    Several `processes`, which all call it alike and see the same `output`, share the shards.

    The same call continues an interrupted one shard by shard (storage/partial.py), and does nothing if `output` is
    finished and has the same `info`. Returns the number of images of each split. Raises UserError if `output` is
    something else, unfinished work has other settings, `data` is not prepared, or `encode`'s answer cannot be stored.
    """
    if info.dtype not in DTYPES or min(info.words, info.width) < 1:
        raise UserError(f"{info} is not valid: words and width are at least 1, dtype is one of {', '.join(DTYPES)}")
    sources = {split: PreparedSource(data, split, features) for split in splits(data)}
    counts = {split: len(source) for split, source in sources.items()}
    if os.path.lexists(output):
        _check_finished(Path(output), info, counts)
        return counts
    settings = dataclasses.asdict(info) | counts | {"images per shard": images_per_shard}
    pieces = [piece for split, count in counts.items() for piece in _pieces(split, count, images_per_shard)]
    ours = processes.share(pieces)
    bar = tqdm(total=sum(len(images) for _, _, images in ours), unit=" images", disable=not processes.first)
    with PartialFolder(partial_path(Path(output)), settings, processes) as partial, bar:
        finished = {name: VectorShard(*values) for name, values in partial.records().items()}
        for split, name, images in ours:
            path, source = partial.data / name, sources[split]
            if path.stem in finished:
                _check_shard(path, finished[path.stem], source, images, info)
                bar.update(len(images))
            else:
                records = _records(source, images, encode, info, f"{data}, split {split}")
                write_record(partial.path, path.stem, _write_shard(path, records, len(images), bar))
        processes.wait("word vectors: shards")
        if processes.first:
            partial.check_complete(name for _, name, _ in pieces)
            for path in partial.data.glob("*.tmp"):
                path.unlink()
            shards: dict[str, list] = {split: [] for split in sources}
            written = {shard.file: shard for shard in itertools.starmap(VectorShard, partial.records().values())}
            for split, name, _ in pieces:
                shards[split].append(written[name]._asdict())
            content = {"format": folder.FORMAT, "version": folder.VERSION} | dataclasses.asdict(info)
            replace_text(partial.data / INFO_FILE, json.dumps(content | {"splits": shards}, indent=1) + "\n")
            partial.finish(Path(output))
        processes.wait("word vectors: output")
    return counts


def _pieces(split: str, count: int, images_per_shard: int) -> list[tuple[str, str, range]]:
    """The shards of a split: the split, the name of the file, and the images in it."""
    total = -(-count // images_per_shard)
    return [
        (
            split,
            f"{split}-{number:05d}-of-{total:05d}.array_record",
            range(count)[number * images_per_shard : (number + 1) * images_per_shard],
        )
        for number in range(total)
    ]


def _check_finished(output: Path, info: WordVectorInfo, counts: dict[str, int]) -> None:
    """Raises UserError if `output` is anything but the finished vectors that were asked for."""
    if not (output / INFO_FILE).is_file():
        raise UserError(f"{output} exists already; give a new folder, or remove that one first")
    found = WordVectorFolder(str(output))
    if changes := describe_changes(dataclasses.asdict(found.info) | found.counts, dataclasses.asdict(info) | counts):
        raise UserError(f"{output} exists already with other settings: {changes}; give another output, or remove it")


# What the encoder returns


def _records(source: PreparedSource, images: range, encode: Encode, info: WordVectorInfo, name: str) -> Iterator[bytes]:
    for start in range(0, len(images), IMAGES_PER_CALL):
        called = images[start : start + IMAGES_PER_CALL]
        candidates = [source.captions(image) for image in called]
        texts = [caption for captions in candidates for caption in captions]
        answers = list(encode(texts)) if texts else []
        if len(answers) != len(texts):
            raise UserError(f"the encoder returned {len(answers)} arrays for {len(texts)} captions; return as many")
        remaining = iter(answers)
        for image, captions in zip(called, candidates):
            vectors = [_checked(next(remaining), info, f"{name}, image {image}, {t[:60]!r}") for t in captions]
            yield folder.pack(vectors, captions, info)


def _checked(vectors: np.ndarray, info: WordVectorInfo, where: str) -> np.ndarray:
    """The vectors of one caption in the stored dtype. Raises UserError for a wrong shape, NaN and infinity."""
    shape = np.shape(vectors)
    if len(shape) != 2 or shape[1] != info.width or not 1 <= shape[0] <= info.words:
        raise UserError(f"{where}: the encoder returned shape {shape}, not 1 to {info.words} words by {info.width}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(vectors, DTYPES[info.dtype])
    if not folder.is_finite(stored):
        raise UserError(f"{where}: vectors are not finite in {info.dtype}; correct the encoder, or use bfloat16")
    return stored


# Shards


def _write_shard(path: Path, records: Iterator[bytes], images: int, bar: tqdm) -> VectorShard:
    with replacing(path) as beside:
        writer = ArrayRecordWriter(str(beside), "group_size:1")
        for record in records:
            writer.write(record)
            bar.update()
        writer.close()
        with open(beside, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = beside.stat().st_size
    return VectorShard(path.name, images, size, sha256)


def _check_shard(path: Path, shard: VectorShard, source: PreparedSource, images: range, info: WordVectorInfo) -> None:
    """Raises UserError if a shard of an earlier call does not belong to the data's captions."""
    try:
        if shard.images != len(images) or path.stat().st_size != shard.bytes:
            raise ValueError(f"it should have {len(images)} images in {shard.bytes} bytes")
        records = ArrayRecordDataSource([f"{path}[0:{shard.images}]"])
        for place in {0, shard.images - 1}:
            folder.unpack(records[place], source.captions(images[place]), info)
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be reused: {error}; remove {path.parents[1]} to start again") from error
