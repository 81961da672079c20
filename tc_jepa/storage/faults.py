"""Faults of the machine while files are written: a full disk, a quota, a file system that is read-only or fails.

Libraries raise all kinds for them: OSError without the name of a file, ValueError of TensorStore, RuntimeError of
ArrayRecord. `writing` names the file, and turns them into StorageFault; what is left, the launchers pass to `fault_of`.
"""

from collections.abc import Iterator
import contextlib
import errno
import os

from tc_jepa.errors import UserError

AGAIN = "then run the same command again"
FIXES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room in that quota",
    errno.EROFS: "mount it writable, or give another folder",
    errno.EACCES: "grant the permission, or give another folder",
    errno.EPERM: "grant the permission, or give another folder",
    errno.EIO: "check that disk or mount",
    errno.ESTALE: "check that mount",
}
ONLY_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class StorageFault(UserError):
    """A file that the machine cannot write or read. `about` is its path. The exit status of a command is EX_IOERR."""

    status = os.EX_IOERR


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """A context in which `path`, a file or folder, is written. Raises StorageFault for any error that says why not."""
    try:
        yield
    except Exception as error:
        if fault := fault_of(error, path):
            raise fault from error
        raise


def fault_of(
    error: BaseException | None, path: str | os.PathLike | None = None, done: str = "written"
) -> StorageFault | None:
    """Returns the fault of the machine that `error` is or follows from; None for any other error.

    `path` is what was being written, or read as `done` says, for errors that do not name it. Without it only OSErrors
    count. A UserError says what is wrong already.
    """
    while error is not None and not isinstance(error, UserError):
        code = error.errno if isinstance(error, OSError) else _code_in(error) if path else None
        if code in FIXES:
            named = getattr(error, "filename", None)
            ours = path is not None and (named is None or str(named).startswith(os.fspath(path)))
            where = os.fspath(path) if ours else str(named or "a file")
            what = done if ours else "written" if code in ONLY_WRITING else "read or written"
            return StorageFault(f"{where} cannot be {what}: {os.strerror(code)}; {FIXES[code]}, {AGAIN}", about=where)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error if isinstance(error, StorageFault) else None


def _code_in(error: BaseException) -> int | None:
    """The errno whose description an error that is not an OSError quotes."""
    return next((code for code in FIXES if os.strerror(code) in str(error)), None)
