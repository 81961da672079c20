"""Reading files that a user gives: regular ones only, and strictly.

A pipe, a socket or a device under the name of a file would be waited for, or read, without end.
"""

import errno
import json
import os
from pathlib import Path
import stat
from typing import Any

from tc_jepa.errors import UserError
from tc_jepa.storage.files import as_path, in_bucket

LFS = b"version https://git-lfs.github.com/spec/"  # how the file begins that Git LFS puts in the place of a large one
LFS_NOTE = "it is a Git LFS pointer, not the file itself: run `git lfs pull` where it is from"
KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


def check_regular(path: str | os.PathLike) -> None:
    """Raises OSError, whose strerror says what it is, unless `path` is a regular file or a link to one. Opens nothing.

    A bucket has nothing else.
    """
    if in_bucket(path):
        return
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        reason = f"it is a {KINDS.get(stat.S_IFMT(mode), 'special file')}, not a file"
        raise OSError(errno.EINVAL, reason, os.fspath(path))


def read_regular(path: str | os.PathLike) -> bytes:
    """Returns the content of a file. Raises OSError as check_regular, and for one that cannot be read."""
    check_regular(path)
    return as_path(path).read_bytes()


def lfs_reason(content: bytes) -> str | None:
    """Returns what is wrong with a file that is a Git LFS pointer; None for any other. Its beginning is enough."""
    return LFS_NOTE if content.startswith(LFS) else None


def lfs_reason_of(path: str | os.PathLike) -> str | None:
    """Returns lfs_reason of a file; None for what is not a regular file that can be read."""
    try:
        check_regular(path)
        with as_path(path).open("rb") as file:
            return lfs_reason(file.read(len(LFS)))
    except OSError:
        return None


def parse_json(text: str | bytes) -> Any:
    """Returns what JSON text holds. NaN and Infinity, which are not JSON but are written for missing values, are None.

    Raises ValueError for anything else, and for values that are nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """Returns the JSON object in a file. For anything else it raises a UserError that names it and ends in `fix`."""
    try:
        values = parse_json(read_regular(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); {lfs_reason_of(path) or fix}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; {fix}")
    return values
