"""Writing files and folders so that neither a reader nor a kill ever leaves half of one."""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
from pathlib import Path
import re
import secrets
import shutil
from typing import IO

from absl import logging

from tc_jepa.errors import UserError

TRAINING_LOCK = "train.lock"  # in a workdir: locked while a training runs there


def local_path(path: str, name: str) -> str:
    """`path` with ~ or ~USER at its start replaced by that home folder. `name` is the flag or key that it is given to.

    UserError for a URL, which would become a local folder called "gs:" or the like, and for an unknown user.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise UserError(f"{name}={path} is a URL; only local and mounted file systems are supported, give a path there")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{name}={path} names an unknown user; write ./{path} for a folder of that name")
    return expanded


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file at. It replaces `path` if the block succeeds, else is removed."""
    beside = path.with_name(f"{path.name}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes `text` to a temporary file and then replaces `path` with it."""
    with replacing(path) as beside:
        beside.write_text(text)


def held(path: Path) -> IO[bytes]:
    """Opens a file, creating it if needed, and locks it until it is closed or the process ends.

    Raises UserError if another process has locked it. On a file system without locks it warns and returns the file.

    The library filelock was tried and does not fit: where flock is missing it creates marker files, which a killed
    command leaves behind, and it does not see that the folder of the file was replaced while it was waiting.
    """
    in_use = UserError(f"{path.parent} is in use by another command; wait for it, or give another folder")
    file = path.open("ab")  # NFS refuses to lock a file that is open for reading only
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise in_use from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            file.close()
            raise
        logging.warning("%s cannot be locked (%s): do not let another command use it", path.parent, error.strerror)
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        file.close()  # another process removed or replaced the file before it was locked
        raise in_use
    return file


def refuse_held(path: Path) -> None:
    """UserError where another process has locked `path` with `held`. There need not be such a file."""
    if path.exists():
        held(path).close()


def refuse_existing(output: Path) -> None:
    """Raises UserError if `output` exists. Commands call it before they read anything."""
    if os.path.lexists(output):
        raise UserError(f"--output={output} exists already; give a new path, or remove that one first")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, which is renamed to `output` if the block succeeds, and removed otherwise.

    Raises UserError if `output` exists or cannot be created.
    """
    refuse_existing(output)
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    temporary = parent / f".{output.name}.{secrets.token_hex(4)}"
    try:
        temporary.mkdir()
    except OSError as error:
        raise UserError(f"--output={output} cannot be created in {parent} ({error.strerror}); give another") from error
    try:
        yield temporary
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def short_hash(value: str | int | None) -> str:
    """The first 12 digits of a sha256, any other value as a string."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
