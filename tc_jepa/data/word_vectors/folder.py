"""Word vectors that a frozen text encoder computed before training: the format on disk, and reading it.

tc_jepa/data/README.md describes the folder: words.json and ArrayRecord shards of safetensors, which write.py writes.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_data_source import ArrayRecordDataSource
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from tc_jepa.data.prepared import PreparedSource
from tc_jepa.data.sources import BadRecord, Example
from tc_jepa.errors import UserError
from tc_jepa.storage.files import short_hash
from tc_jepa.storage.reading import parse_json, read_regular

FORMAT, VERSION, INFO_FILE = "tc_jepa word vectors", 1, "words.json"


DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}
STORED_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # as safetensors names them


@dataclasses.dataclass(frozen=True)
class WordVectorInfo:
    """The encoder that made the vectors, and their form. `weights` and `vocabulary` are sha256, None if not given."""

    encoder: str
    weights: str | None
    vocabulary: str | None
    words: int  # S, to which captions were cut before they were encoded: another S gives other vectors, not only fewer
    width: int  # E, channels
    dtype: str


INFO_TYPES = {"encoder": str, "words": int, "width": int, "dtype": str}


class VectorShard(NamedTuple):
    """One shard as words.json lists it."""

    file: str
    images: int
    bytes: int
    sha256: str


class WordVectorFolder:
    """A finished folder of word vectors. Raises UserError if `path` is not one.

    `info` describes the vectors, `identity` is a sha256 of their content, `counts` the number of images by split.
    """

    def __init__(self, path: str):
        self.path = path
        fix = "give a folder that launch.encode_captions or write_word_vectors finished"
        try:
            text = read_regular(Path(path) / INFO_FILE)
        except OSError as error:
            raise UserError(f"{path} has no readable {INFO_FILE} ({error.strerror}); {fix}") from error
        try:
            values = parse_json(text)
            kind, splits = (values.pop("format"), values.pop("version")), values.pop("splits")
            self._shards = {name: [VectorShard(**shard) for shard in shards] for name, shards in splits.items()}
            self.info = WordVectorInfo(**values)
            if wrong := [key for key, kind in INFO_TYPES.items() if type(values[key]) is not kind]:
                raise TypeError(f"{wrong[0]} is {values[wrong[0]]!r}")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{path}/{INFO_FILE} does not describe word vectors ({error}); {fix}") from error
        if kind != (FORMAT, VERSION) or self.info.dtype not in DTYPES:
            known = f"{FORMAT!r}, version {VERSION}, in {', '.join(DTYPES)}"
            raise UserError(f"{path} is {kind[0]!r}, version {kind[1]}, in {self.info.dtype}; give {known}")
        self.identity = hashlib.sha256(text).hexdigest()
        self.counts = {split: sum(shard.images for shard in shards) for split, shards in self._shards.items()}

    def check(self, name: str, key: str, wanted: str | int) -> None:
        """Raises UserError if the field `key` of the info differs from `wanted`, the value of the setting `name`."""
        found = getattr(self.info, key)
        if found != wanted:
            differ = f"{key} {short_hash(found)}, {name} has {short_hash(wanted)}"
            raise UserError(f"{self.path} was encoded with {differ}; encode again, or change the setting")

    def attach(self, source: PreparedSource, split: str) -> "WordVectorSource":
        """The images of a split with their vectors. Raises UserError for missing shards and those of other data."""
        shards = self._shards.get(split)
        if shards is None:
            raise UserError(f"{self.path} has no vectors of split {split!r}; encode the captions again")
        for shard in shards:
            path = Path(self.path) / shard.file
            if path.parent != Path(self.path):
                raise UserError(f"{self.path}/{INFO_FILE} lists a shard outside its folder: {shard.file}")
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise UserError(f"{path} is missing or not of {shard.bytes} bytes; restore it, or encode again")
        records = ArrayRecordDataSource([f"{Path(self.path) / file}[0:{images}]" for file, images, *_ in shards])
        return WordVectorSource(source, self.info, f"{self.path}, split {split}", records)


class WordVectorSource:
    """A split's images with stored vectors for captions: a sources.Captioned.

    When an image is read, its captions are compared with those that were encoded, which is cheap beside decoding the
    image; those of the first and last image are compared at once, unless a record is damaged, which is reported when it
    is read again. Raises UserError if they differ.
    """

    def __init__(self, source: PreparedSource, info: WordVectorInfo, name: str, records: Sequence[bytes]):
        if len(records) != len(source):
            number = f"{len(records)} images, the data {len(source)}"
            raise UserError(f"{name} has vectors of {number}; encode the captions again")
        self._source, self._info, self._name, self._records = source, info, name, records
        for index in {0, len(records) - 1}:
            with contextlib.suppress(BadRecord):
                self._read(index, source.captions(index))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return example._replace(captions=self._read(index, example.captions))

    def _read(self, index: int, captions: Sequence[str]) -> tuple[np.ndarray, ...]:
        try:
            return unpack(self._records[index], captions, self._info)
        except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
            raise UserError(f"{self._name}: image {index}: {error}; encode the captions again") from error


class WordVectorReader:
    """Puts the stored vectors of captions into arrays of a fixed shape: a tokenizer.CaptionReader."""

    def __init__(self, info: WordVectorInfo):
        self.words = info.words
        self.blank = np.zeros((0, info.width), DTYPES[info.dtype])

    def encode(self, captions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [len(captions), S, E] in the stored dtype, 0 in padding, and bool [len(captions), S]: not padding."""
        vectors = np.zeros((len(captions), self.words, self.blank.shape[1]), self.blank.dtype)
        for row, caption in zip(vectors, captions, strict=True):
            row[: len(caption)] = caption
        lengths = np.array([len(caption) for caption in captions])
        return vectors, np.arange(self.words) < lengths[:, None]


def digest(captions: Sequence[str]) -> bytes:
    """sha256 of an image's candidates."""
    return hashlib.sha256(json.dumps(list(captions)).encode()).digest()


def pack(vectors: Sequence[np.ndarray], captions: Sequence[str], info: WordVectorInfo) -> bytes:
    """The record of an image, from the vectors [words, E] of all its candidates in the stored dtype."""
    blank = np.zeros((0, info.width), DTYPES[info.dtype])
    tensors = {
        "vectors": np.concatenate([blank, *vectors]),
        "lengths": np.array([len(caption) for caption in vectors], np.int32),
        "captions": np.frombuffer(digest(captions), np.uint8),
    }
    return safetensors.numpy.save(tensors)


def unpack(record: bytes, captions: Sequence[str], info: WordVectorInfo) -> tuple[np.ndarray, ...]:
    """The vectors [words, E] of each of the candidates `captions`. Raises ValueError if the record is not theirs."""
    tensors = dict(safetensors.deserialize(record))  # safetensors.numpy.load does not support bfloat16
    kinds = {name: tensor["dtype"] for name, tensor in tensors.items()}
    if kinds != (wanted := {"vectors": STORED_DTYPES[info.dtype], "lengths": "I32", "captions": "U8"}):
        raise ValueError(f"the record holds {kinds}, not {wanted}")
    if bytes(tensors["captions"]["data"]) != digest(captions):
        raise ValueError("its vectors belong to other captions than the data has")
    vectors = np.frombuffer(tensors["vectors"]["data"], DTYPES[info.dtype]).reshape(tensors["vectors"]["shape"])
    lengths = np.frombuffer(tensors["lengths"]["data"], np.int32)
    if len(lengths) != len(captions) or (lengths < 1).any():
        raise ValueError(f"{len(captions)} captions have vectors of lengths {lengths.tolist()}")
    if vectors.shape != (lengths.sum(), info.width) or (lengths > info.words).any():
        raise ValueError(f"vectors {vectors.shape} of lengths {lengths.tolist()} do not fit {INFO_FILE}")
    if not is_finite(vectors):
        raise ValueError("its vectors are not all finite")
    return tuple(np.split(vectors, np.cumsum(lengths)[:-1])) if len(lengths) else ()


def is_finite(vectors: np.ndarray) -> bool:
    """Whether all values are finite. Tests the bits: np.isfinite takes many times longer for bfloat16."""
    bits = vectors.view(np.uint32 if vectors.itemsize == 4 else np.uint16)
    infinity = np.array(np.inf, vectors.dtype).view(bits.dtype)  # its bits are also set in NaN
    return not ((bits & infinity) == infinity).any()
