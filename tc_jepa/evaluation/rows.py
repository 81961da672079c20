"""Rows of arrays that may lie on disk and are read when they are asked for, so that they need not fit into memory."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
import struct
import zipfile

import numpy as np

LOCAL_HEADER = 30  # bytes of a ZIP member's own header before its name
CHUNK = 64  # rows that are read at once where all are read in turn
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Rows:
    """Rows of an array [n, ...] that is held in several parts, one after the other.

    rows[i:j] and rows[indices] read those rows into a new array; iteration reads CHUNK of them at a time. `select` and
    `map` read nothing. numpy.asarray reads all.
    """

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        chosen: np.ndarray | None = None,
        function: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self._parts, self._function = tuple(parts), function
        self._ends = np.cumsum([len(part) for part in parts])
        self._chosen = np.arange(self._ends[-1]) if chosen is None else chosen

    @classmethod
    def of(cls, array: "np.ndarray | Rows") -> "Rows":
        """`array` itself, or the rows of an array in memory."""
        return array if isinstance(array, Rows) else cls([array])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        rows = self._chosen[key]
        found = np.empty((len(rows), *self.shape[1:]), self._parts[0].dtype)
        part = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(part):
            here, array = part == number, self._parts[number]
            found[here] = array[rows[here] - (self._ends[number] - len(array))]
        return found if self._function is None else self._function(found)

    def __iter__(self) -> Iterator[np.ndarray]:
        for chunk in self.chunks():
            yield from chunk

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def chunks(self) -> Iterator[np.ndarray]:
        """All rows in order, CHUNK or fewer at a time."""
        for start in range(0, len(self), CHUNK):
            yield self[start : start + CHUNK]

    def select(self, key: slice | np.ndarray) -> "Rows":
        """Some of the rows, by a slice, indices, or a bool for each row."""
        return Rows(self._parts, self._chosen[key], self._function)

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Rows":
        """The rows after a function that changes neither shape nor order, which is applied when they are read."""
        before = self._function
        return Rows(self._parts, self._chosen, function if before is None else lambda rows: function(before(rows)))


def moments(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over all other axes, float32 [D], of rows [n, ..., D].

    They are accumulated in float64, in two passes over the rows.
    """
    D, count = rows.shape[-1], np.prod(rows.shape[:-1])
    total = sum(chunk.reshape(-1, D).sum(axis=0, dtype=np.float64) for chunk in rows.chunks())
    mean = total / count
    squares = sum(np.square(chunk.reshape(-1, D) - mean).sum(axis=0) for chunk in rows.chunks())
    return mean.astype(np.float32), np.sqrt(squares / count).astype(np.float32)


def mapped(path: Path, name: str) -> np.ndarray:
    """An array of an .npz that numpy.savez wrote, mapped into memory: it is read from the file where it is used."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path} is compressed")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        lengths = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])  # of the name and of what follows it
        file.seek(sum(lengths), 1)
        shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        return np.memmap(file, dtype, "r", file.tell(), shape)


def write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Adds an array to an .npz."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def write_rows(archive: zipfile.ZipFile, name: str, count: int, chunks: Iterator[np.ndarray]) -> None:
    """Adds an array of `count` rows to an .npz, from arrays of some rows each, of which one is held at a time."""
    first = next(chunks)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, *first.shape[1:])})
        file.write(first.tobytes())
        for chunk in chunks:
            file.write(chunk.tobytes())
