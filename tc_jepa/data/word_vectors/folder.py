"""Word vectors that a frozen text encoder computed before training: their format on disk, and reading them.

A folder holds words.json and ArrayRecord shards (write_words.py writes both). Record i of a split's shards, in the
order that words.json lists them, belongs to image i of the split, whose candidates are those that PreparedSource reads
(none blank, none twice), and is the bytes of a safetensors file:

  vectors   [words of all candidates, E], of words.json's dtype: the candidates' vectors, one after the other
  lengths   int32 [candidates]: how many of the vectors are each candidate's, 1 to S
  captions  uint8 [32]: sha256 of the image's candidates, json.dumps(list of all of them)

words.json: format "tc_jepa word vectors"; version 1; encoder, a name; weights and vocabulary, sha256 or null; words,
the longest caption S; width, E; dtype (bfloat16, float16 or float32); splits, by name: a list of shards, each with
file, images, bytes, and sha256 of the file. ArrayRecord keeps a checksum of every record.
"""

from collections.abc import Sequence
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
from tc_jepa.data.sources import Example
from tc_jepa.errors import UserError

FORMAT, VERSION, STAMP_FILE = "tc_jepa word vectors", 1, "words.json"


class FloatType(NamedTuple):
    """How a dtype is called in safetensors, what NumPy calls it, and the bits that are all set in NaN and infinity."""

    stored: str
    numpy: type
    not_finite: int


DTYPES = {
    "bfloat16": FloatType("BF16", ml_dtypes.bfloat16, 0x7F80),
    "float16": FloatType("F16", np.float16, 0x7C00),
    "float32": FloatType("F32", np.float32, 0x7F800000),
}


@dataclasses.dataclass(frozen=True)
class WordsStamp:
    """What made the vectors, and their form. `weights` and `vocabulary` are sha256, None where nobody gave them.

    `words` is S, to which captions were cut before they were encoded: another S gives other vectors, not only fewer.
    """

    encoder: str
    weights: str | None
    vocabulary: str | None
    words: int
    width: int
    dtype: str


STAMP_TYPES = {"encoder": str, "words": int, "width": int, "dtype": str}


class Shard(NamedTuple):
    """A line of words.json."""

    file: str
    images: int
    bytes: int
    sha256: str


class WordsFolder:
    """A folder of word vectors. Raises UserError where `path` is none, or not a whole one.

    `stamp` says what made it, `identity` (a sha256) what is in it, to the last bit, `counts` the images by split.
    """

    def __init__(self, path: str):
        self.path = path
        mend = "give a folder that launch.encode_captions or write_words finished"
        try:
            text = (Path(path) / STAMP_FILE).read_bytes()
        except OSError as error:
            raise UserError(f"{path} holds no readable {STAMP_FILE} ({error.strerror}); {mend}") from error
        try:
            values = json.loads(text)
            kind = values.pop("format"), values.pop("version")
            shards = {name: tuple(Shard(**shard) for shard in split) for name, split in values.pop("splits").items()}
            self.stamp = WordsStamp(**values)
            if wrong := [key for key, kind in STAMP_TYPES.items() if type(values[key]) is not kind]:
                raise TypeError(f"{wrong[0]} is {values[wrong[0]]!r}")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{path}/{STAMP_FILE} is no description of word vectors ({error}); {mend}") from error
        if kind != (FORMAT, VERSION) or self.stamp.dtype not in DTYPES:
            raise UserError(
                f"{path} is {kind[0]!r}, version {kind[1]}, in {self.stamp.dtype}; this program reads {FORMAT!r}, "
                f"version {VERSION}, in {', '.join(DTYPES)}"
            )
        self.identity = hashlib.sha256(text).hexdigest()
        self.counts = {split: sum(shard.images for shard in listed) for split, listed in shards.items()}
        self._shards = shards

    def check(self, name: str, key: str, wanted: str | int) -> None:
        """UserError where a key of the stamp is not what the setting called `name` asks for."""
        found = getattr(self.stamp, key)
        if found != wanted:
            raise UserError(
                f"{self.path} was encoded with {key} {short(found)}, {name} has {short(wanted)}; encode the captions "
                f"anew, or change the setting"
            )

    def attach(self, source: PreparedSource, split: str) -> "WordSource":
        """The images of a split with their vectors. UserError where shards are missing or of other data."""
        shards = self._shards.get(split)
        if shards is None:
            raise UserError(f"{self.path} has no vectors of split {split!r}; encode the captions anew")
        for shard in shards:
            path = Path(self.path) / shard.file
            if path.parent != Path(self.path):
                raise UserError(f"{self.path}/{STAMP_FILE} names a shard outside of its folder: {shard.file}")
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                raise UserError(
                    f"{path} is {'missing' if size is None else f'{size} bytes, not {shard.bytes}'}; restore it, or "
                    f"encode the captions anew"
                )
        return WordSource(source, self.stamp, f"{self.path}, split {split}", self.path, shards)


class WordSource:
    """A split's images with stored vectors for captions: a sources.Captioned.

    An image's captions are compared with the ones that were encoded when it is read, which costs nothing beside
    decoding it; those of the first and last image at once. UserError where they differ.
    """

    def __init__(self, source: PreparedSource, stamp: WordsStamp, name: str, folder: str, shards: Sequence[Shard]):
        count = sum(shard.images for shard in shards)
        if count != len(source):
            raise UserError(f"{name} has vectors of {count} images, the data {len(source)}; encode the captions anew")
        self._source, self._stamp, self._name = source, stamp, name
        self._records = ArrayRecordDataSource([f"{Path(folder) / file}[0:{images}]" for file, images, *_ in shards])
        for index in {0, count - 1}:
            self._read(index, source.captions(index))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        image, captions = self._source[index]
        return Example(image, self._read(index, captions))

    def _read(self, index: int, captions: Sequence[str]) -> tuple[np.ndarray, ...]:
        try:
            return unpack(self._records[index], captions, self._stamp)
        except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self._name}: image {index}: {reason}; encode the captions anew") from error


class WordVectors:
    """Lays the vectors of captions out in rows: a captions.CaptionReader."""

    def __init__(self, stamp: WordsStamp):
        self.words = stamp.words
        self.blank = np.zeros((0, stamp.width), DTYPES[stamp.dtype].numpy)

    def encode(self, captions: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors [len(captions), S, E] in the stored type, zero where not real, and which are, bool without E."""
        vectors = np.zeros((len(captions), self.words, self.blank.shape[1]), self.blank.dtype)
        for row, caption in zip(vectors, captions, strict=True):
            row[: len(caption)] = caption
        lengths = np.array([len(caption) for caption in captions])
        return vectors, np.arange(self.words) < lengths[:, None]


def digest(captions: Sequence[str]) -> bytes:
    """sha256 of an image's candidates."""
    return hashlib.sha256(json.dumps(list(captions)).encode()).digest()


def pack(vectors: Sequence[np.ndarray], captions: Sequence[str], stamp: WordsStamp) -> bytes:
    """An image's record, from the vectors [words, E] of all its candidates, in the stored type."""
    blank = np.zeros((0, stamp.width), DTYPES[stamp.dtype].numpy)
    tensors = {
        "vectors": np.concatenate([blank, *vectors]),
        "lengths": np.array([len(caption) for caption in vectors], np.int32),
        "captions": np.frombuffer(digest(captions), np.uint8),
    }
    return safetensors.numpy.save(tensors)


def unpack(record: bytes, captions: Sequence[str], stamp: WordsStamp) -> tuple[np.ndarray, ...]:
    """The vectors [words, E] of each of the candidates `captions`; ValueError where the record is not theirs."""
    form = DTYPES[stamp.dtype]
    tensors = dict(safetensors.deserialize(record))  # safetensors.numpy.load knows no bfloat16
    kinds = {name: tensor["dtype"] for name, tensor in tensors.items()}
    if kinds != (wanted := {"vectors": form.stored, "lengths": "I32", "captions": "U8"}):
        raise ValueError(f"the record holds {kinds}, not {wanted}")
    if bytes(tensors["captions"]["data"]) != digest(captions):
        raise ValueError("its vectors are of other captions than the data has")
    vectors = np.frombuffer(tensors["vectors"]["data"], form.numpy).reshape(tensors["vectors"]["shape"])
    lengths = np.frombuffer(tensors["lengths"]["data"], np.int32)
    if len(lengths) != len(captions) or (lengths < 1).any():
        raise ValueError(f"{len(captions)} captions have vectors of lengths {lengths.tolist()}")
    if vectors.shape != (lengths.sum(), stamp.width) or (lengths > stamp.words).any():
        raise ValueError(f"vectors {vectors.shape} of lengths {lengths.tolist()} do not fit {STAMP_FILE}")
    if not is_finite(vectors, form):
        raise ValueError("its vectors are not all finite")
    return tuple(np.split(vectors, np.cumsum(lengths)[:-1])) if len(lengths) else ()


def is_finite(vectors: np.ndarray, form: FloatType) -> bool:
    """As np.isfinite, by the bits: bfloat16's own takes many times longer."""
    bits = vectors.view(np.uint32 if vectors.itemsize == 4 else np.uint16)
    return not ((bits & form.not_finite) == form.not_finite).any()


def short(value: str | int | None) -> str:
    """A sha256 by its first letters, anything else as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
