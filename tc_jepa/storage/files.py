"""Writing files and folders so that neither a reader nor a kill ever leaves half of one.

Workdirs may also be in a bucket of Cloud Storage (gs://BUCKET/PATH). `as_path` then returns an etils.epath.Path, which
has the methods of pathlib.Path that are used here. A bucket has neither folders, renames nor locks, and an object
appears whole.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import importlib.util
import io
import os
from pathlib import Path
import re
import secrets
import shutil
import time
from typing import IO

from absl import logging

from tc_jepa.errors import UserError
from tc_jepa.storage.faults import writing

TRAINING_LOCK = "train.lock"  # in a workdir: locked while a training runs there
BUCKETS = "gs://"
BUCKET_INTERVAL = 60  # seconds
BUCKET_PACKAGES = ("gcsfs", "google.cloud.storage")  # that etils.epath and Orbax use for a bucket


def in_bucket(path: str | os.PathLike) -> bool:
    """Returns whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKETS)


def as_path(path: str | os.PathLike) -> Path:
    """Returns a path as a pathlib.Path, or as an etils.epath.Path where it is in a bucket.

    pathlib.Path would make a local path of the URL, so a path that may be a workdir is converted with this function.
    """
    if not in_bucket(path):
        return Path(path)
    from etils import epath

    return epath.Path(path)


def workdir_path(path: str, name: str) -> str:
    """Returns `path` as `local_path` does, or as it is where it is in a bucket.

    Raises UserError as `local_path`, and where the packages for buckets are not installed.
    """
    if not in_bucket(path):
        return local_path(path, name, buckets=True)
    missing = [package for package in BUCKET_PACKAGES if not _is_installed(package)]
    if missing:
        names = " ".join(package.replace(".", "-") for package in missing)
        raise UserError(f"{name}={path} needs other packages: pip install {names}", about=name.removeprefix("--"))
    return path.rstrip("/")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def local_path(path: str, name: str, *, buckets: bool = False) -> str:
    """`path` with ~ or ~USER at its start replaced by that home folder. `name` is the flag or key that it is given to.

    UserError for a URL, which would become a local folder called "gs:" or the like, and for an unknown user. `buckets`
    says that gs:// can be given there.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        fix = "give gs://BUCKET/PATH or a local path" if buckets else "give a local path, or mount the bucket"
        raise UserError(f"{name}={path} is a URL, which cannot be used here; {fix}", about=name.removeprefix("--"))
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UserError(f"{name}={path} names an unknown user; write ./{path} for a folder of that name")
    return expanded


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file at. It replaces `path` if the block succeeds, else is removed.

    Raises StorageFault where the machine cannot write it.
    """
    beside = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            yield beside
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):  # of which there was an earlier one, that says why
                beside.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replaces the file `path`, which may be in a bucket, by one with `text`."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Replaces the file `path`, which may be in a bucket, by one with `content`."""
    if in_bucket(path):
        path.write_bytes(content)
        return
    with replacing(path) as beside:
        beside.write_bytes(content)


class GrowingFile:
    """A text file to which lines are added; they are kept when the process is killed. Methods raise StorageFault.

    An object in a bucket cannot grow. There the whole file is written again, at most once every BUCKET_INTERVAL, by
    `sync` and by `close`, and a kill loses the lines since.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._lines, self._synced = path, None, [], time.monotonic()
        if not in_bucket(path):
            with writing(path):
                self._file = path.open("a")
        elif path.exists():
            self._lines.append(path.read_text())

    def write(self, line: str) -> None:
        """Adds a line, which ends in a newline."""
        if self._file is not None:
            with writing(self._path):
                self._file.write(line)
                self._file.flush()
            return
        self._lines.append(line)
        if time.monotonic() - self._synced > BUCKET_INTERVAL:
            self.sync()

    def sync(self) -> None:
        """Makes all lines safe from a kill."""
        if self._file is None:
            replace_text(self._path, "".join(self._lines))
            self._synced = time.monotonic()

    def close(self) -> None:
        self.sync()
        if self._file is not None:
            with writing(self._path):
                self._file.close()


def held(path: Path) -> IO[bytes]:
    """Opens a file, creating it if needed, and locks it until it is closed or the process ends.

    Raises UserError if another process has locked it. On a file system without locks it warns and returns the file. In
    a bucket there are no locks: it warns, and creates nothing.

    The library filelock was tried and does not fit: where flock is missing it creates marker files, which a killed
    command leaves behind, and it does not see that the folder of the file was replaced while it was waiting.
    """
    if in_bucket(path):
        logging.warning("%s is in a bucket, which has no locks: do not let another command use it", path.parent)
        return io.BytesIO()
    in_use = UserError(f"{path.parent} is in use by another command; wait for it, or give another folder")
    try:
        file = path.open("ab")  # NFS refuses to lock a file that is open for reading only
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, where a file is expected; move it away") from error
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
    if not in_bucket(path) and path.exists():
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
        with writing(output):
            yield temporary
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def short_hash(value: str | int | None) -> str:
    """The first 12 digits of a sha256, any other value as a string."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
