"""Image-text tars, as img2dataset writes them for WebDataset.

A sample is a run of consecutive members whose names agree up to the first dot of the last part: 00042.jpg, 00042.txt
and 00042.json. Members are read into memory and never extracted.

What follows that dot is the ending of a member. It may have dots itself: of 00042.input.jpg and 00042.outputs.txt the
endings are input.jpg and outputs.txt.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import glob
import hashlib
import itertools
from pathlib import Path, PurePosixPath
import tarfile
from typing import Any, NamedTuple

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.images import decode_image
from tc_jepa.data.prepare import dataset, texts
from tc_jepa.data.prepare.dataset import BadImage, Record, Shard
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.sources import SPLITS, TRAIN
from tc_jepa.errors import UserError
from tc_jepa.storage.reading import check_regular, lfs_reason_of

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
IMAGE_LIMIT = 1 << 28  # bytes
TEXT, JSON = "txt", "json"
MOST_MEMBERS = 1000  # of one sample
CHECKED_SAMPLES = 100  # of each split; every requested field must occur in one of them
LISTED = 20  # endings that a message lists
FIX = "correct the tar"


class Sample(NamedTuple):
    where: str  # TAR: KEY
    members: dict[str, tarfile.TarInfo]  # by ending

    def image(self) -> str:
        """The ending of the image: one of IMAGE_ENDINGS, or else one such as input.jpg. UserError unless it is one."""
        plain = [ending for ending in self.members if ending.lower() in IMAGE_ENDINGS]
        found = plain or [ending for ending in self.members if ending.lower().rpartition(".")[2] in IMAGE_ENDINGS]
        if len(found) != 1:
            named = f"{len(found) or 'no'} images ({_listed(self.members)})"
            rule = "a sample is what has the same name up to the first dot"
            raise UserError(f"{self.where} has {named}, not one {'/'.join(IMAGE_ENDINGS)}; {rule}")
        return found[0]

    def texts(self) -> set[str]:
        """The fields that are members of their own: txt, outputs.txt."""
        return {ending for ending in self.members if ending == TEXT or ending.endswith(f".{TEXT}")}


class BrokenTar(Exception):
    """A tar that cannot be read to its end. The message says why."""


def prepare_tars(
    input: Sequence[str],
    output: str,
    vocabulary: str | None = None,
    skip_bad: bool = False,
    caption_fields: Sequence[str] = (TEXT,),
    description_fields: Sequence[str] = (),
    words: int | None = None,
    workers: int = 0,
) -> Summary:
    """Writes the samples of tars to the new folder `output`, in the order of the tars' names and of their members.

    sources.SOURCES["tars"] describes `input` and the layout. A field is a string, a list of strings, or null, and a
    sample may lack it. The other arguments are as in prepare_folder. With `skip_bad`, samples without an image, with
    one that does not decode, or with invalid JSON or text are left out and counted, and so is all after damage.

    Raises UserError, which names the tar and member; even with `skip_bad` for members that are links or devices or
    whose names leave the folder. Interrupted work can be resumed. A shard contains one or several whole tars.
    """
    model = dataset.read_vocabulary(vocabulary)
    paths = _find(input)
    reader = TarReader(tuple(caption_fields), tuple(description_fields))
    for members in paths.values():
        reader.check_fields(members[0])
    spec = dataset.DatasetSpec(reader, dataset.features({}), model, words, skip_bad, unit="B")
    shards = [shard for split, members in paths.items() for shard in _shards(split, members)]
    fields = {"caption_fields": list(caption_fields), "description_fields": list(description_fields)}
    settings = {"source": "tars", "input": list(input), **fields}
    return dataset.write(output, spec, shards, settings, workers)


def _find(inputs: Sequence[str]) -> dict[str, list[Path]]:
    """The sorted tars that the patterns of each split match, without duplicates, in the order of the splits."""
    found: dict[str, str] = {}  # by path, its split
    for given in inputs:
        split, colon, pattern = given.partition(":")
        if not colon or split not in SPLITS:
            split, pattern = TRAIN, given
        matched = glob.glob(pattern, recursive=True)
        if not matched:
            raise UserError(f"--input={given} matches no file; give a pattern such as 'DIR/*.tar' in quotes")
        for path in matched:
            if (other := found.setdefault(path, split)) != split:
                raise UserError(f"--input: {path} is given for both {other} and {split}; a tar belongs to one split")
            if not Path(path).is_file():
                raise UserError(f"--input: {path} is not a file; give a pattern that matches only tars")
    paths = {split: [Path(path) for path in sorted(found) if found[path] == split] for split in SPLITS}
    return {split: members for split, members in paths.items() if members}


def _shards(split: str, paths: list[Path]) -> Iterator[Shard]:
    step = -(-len(paths) // dataset.MOST_SHARDS)
    for index, start in enumerate(range(0, len(paths), step)):
        members = paths[start : start + step]
        stats = [path.stat() for path in members]
        identity = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(members, stats)]
        digest = hashlib.blake2b(repr(identity).encode(), digest_size=16).hexdigest()
        yield Shard(split, index, digest, sum(stat.st_size for stat in stats), members)


@dataclasses.dataclass(frozen=True)
class TarReader:
    """Reads the samples of tars. The fields are those of prepare_tars."""

    captions: tuple[str, ...]
    descriptions: tuple[str, ...]

    def __call__(self, items: Sequence[Path]) -> Iterator[Record | BadImage]:
        return itertools.chain.from_iterable(map(self._read, items))

    def _read(self, path: Path) -> Iterator[Record | BadImage]:
        size, position, number = path.stat().st_size, 0, 0
        prefixes: dict[str, str] = {}
        try:
            with _open(path) as tar:
                for sample in _samples(tar, path):
                    number += 1
                    before, position = position, tar.offset
                    try:
                        record = self._record(tar, sample, prefixes)
                    except UserError as error:
                        record = BadImage(str(error), FIX)
                    yield record._replace(size=position - before)
        except BrokenTar as error:
            yield BadImage(f"{path} is broken after {number} samples ({error})", "fetch it again", size - position)

    def check_fields(self, path: Path) -> None:
        """Raises UserError, which lists the available fields, for a field that none of the tar's first samples has."""
        present: set[str] = set()
        endings: dict[str, None] = {}
        number = 0
        try:
            with _open(path) as tar:
                for sample in itertools.islice(_samples(tar, path), CHECKED_SAMPLES):
                    number += 1
                    present |= sample.texts()
                    endings |= dict.fromkeys(sample.members)
                    try:
                        present |= _json(tar, sample).keys()
                    except UserError:  # reported, or skipped, when the sample is read
                        continue
        except BrokenTar:
            pass
        for flag, fields in (("caption_fields", self.captions), ("description_fields", self.descriptions)):
            for field in fields:
                if number and field not in present:
                    has = ", ".join(sorted(present)) or "no text at all"
                    where = f"the first {number} samples of {path}"
                    raise UserError(
                        f"--{flag}: none of {where} has {field!r}; they have {has} (of members, {_listed(endings)})"
                    )

    def _record(self, tar: tarfile.TarFile, sample: Sample, prefixes: dict[str, str]) -> Record:
        """`prefixes` keeps how the ending of the tar's first image begins: "input" of input.jpg, "" of jpg."""
        ending = sample.image()
        prefix, _, kind = ending.rpartition(".")
        if prefix != (first := prefixes.setdefault("image", prefix)):  # the image may be missing, and this be its mask
            usual = f"{first}.{kind}" if first else kind
            raise UserError(f"{sample.where} has the image .{ending}, but the tar's first sample .{usual}")
        member = sample.members[ending]
        name = texts.string(member.name, "name", sample.where)
        data = _bytes(tar, member, IMAGE_LIMIT, sample.where)
        try:
            decode_image(data)
        except ValueError as error:
            raise UserError(f"{sample.where}: {name} does not decode: {error}") from error
        wanted = {*self.captions, *self.descriptions}
        fields = wanted & sample.texts()
        entry: dict[str, Any] = _json(tar, sample) if wanted - {TEXT} - fields else {}
        entry = entry | {field: _text(tar, sample, field) for field in sorted(fields)}
        captions, descriptions = (_texts(entry, names, sample.where) for names in (self.captions, self.descriptions))
        return Record({"image": data, "file": name}, candidates(captions, descriptions))


@contextlib.contextmanager
def _damage(hint: str = "") -> Iterator[None]:
    """Turns the errors that a damaged tar causes into BrokenTar."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BrokenTar(f"{error}{hint}") from error


def _open(path: Path) -> tarfile.TarFile:
    try:
        with _damage("; compressed tars are not read"):
            check_regular(path)
            if reason := lfs_reason_of(path):
                raise UserError(f"{path} is not a tar: {reason}")
            return tarfile.open(path, mode="r:")  # r: no compression
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make it readable") from error


def _samples(tar: tarfile.TarFile, path: Path) -> Iterator[Sample]:
    """Raises BrokenTar, and UserError for members that do not occur in harmless tars."""
    seen: set[str] = set()
    for key, run in itertools.groupby(_members(tar, path), key=lambda pair: pair[0]):
        where, members = f"{path}: {key}", {}
        if key in seen:
            raise UserError(f"{where} occurs twice; the members of a sample must be consecutive (tar --sort=name)")
        seen.add(key)
        for _, member in run:
            ending = PurePosixPath(member.name).name.partition(".")[2]
            if ending in members:
                raise UserError(f"{where} has two members .{ending}; give every sample its own name")
            if len(members) == MOST_MEMBERS:
                raise UserError(f"{where} has more than {MOST_MEMBERS:,} members; give every sample its own name")
            members[ending] = member
        yield Sample(where, members)


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in a tar, each with the key of its sample."""
    with _damage():
        while (member := tar.next()) is not None:
            if member.size < 0:  # tarfile would go backwards forever
                raise BrokenTar(f"the size of member {member.name!r} is {member.size} bytes")
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise UserError(f"{path}: the name of member {member.name!r} leaves the tar's folder; remove it")
            if not member.isreg() and not member.isdir():
                raise UserError(f"{path}: member {member.name!r} is a link or device; replace it with the file itself")
            if member.isreg() and not name.name.startswith("."):
                yield str(name.parent / name.name.partition(".")[0]), member
        # tarfile takes both a damaged header and the end of the file for the end of the tar.
        tar.fileobj.seek(tar.offset)
        mark = tar.fileobj.read(tarfile.BLOCKSIZE)
    if mark != bytes(tarfile.BLOCKSIZE):
        raise BrokenTar("its end is missing" if not mark.strip(b"\0") else "a damaged header")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int, where: str) -> bytes:
    if member.size > limit:
        raise UserError(f"{where}: {member.name} is larger than {limit >> 20} MiB")
    with _damage():
        return tar.extractfile(member).read()


def _text(tar: tarfile.TarFile, sample: Sample, ending: str) -> str:
    member = sample.members[ending]
    try:
        return _bytes(tar, member, texts.LIMIT, sample.where).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{sample.where}: {member.name} is not UTF-8") from error


def _json(tar: tarfile.TarFile, sample: Sample) -> dict[str, Any]:
    if (member := sample.members.get(JSON)) is None:
        return {}
    raw = _bytes(tar, member, texts.LIMIT, sample.where)
    return texts.parse(raw, f"{sample.where}: {member.name}", "write one object")


def _texts(entry: dict[str, Any], fields: Sequence[str], where: str) -> list[str]:
    """The texts of all fields that are neither missing nor null."""
    present = [(field, entry[field]) for field in fields if entry.get(field) is not None]
    return [text for field, value in present for text in texts.string_or_strings(value, field, where)]
