"""The shared memory in which data workers hand over batches: names by which a later start clears what a kill has left.

Python's resource tracker removes the segments of processes that were killed, unless it was killed with them, as when
the machine ends a whole job. Its own names say nothing of whose they are. So a run draws a prefix, locks a file of that
name as long as it lives, and its workers name their segments after it.
"""

from multiprocessing import shared_memory
import os
from pathlib import Path
import re
import secrets

from absl import logging

from tc_jepa.errors import UserError
from tc_jepa.storage.files import held

FOLDER = Path("/dev/shm")  # where Linux shows segments as files; elsewhere they cannot be listed
TOKEN = "tcj[0-9a-f]{6}"


class Segments:
    """A prefix for names of segments that is this process's own until `close`. Removes those of dead processes first.

    Attributes:
      prefix: matches TOKEN.
    """

    def __init__(self):
        self.prefix, self._lock = _new_prefix(), None
        if FOLDER.is_dir():
            _remove_dead()
            while self._lock is None:
                try:
                    self._lock = held(FOLDER / self.prefix)
                except UserError:  # another start took the new file for that of a dead process
                    self.prefix = _new_prefix()

    def close(self, *, in_use: bool = False) -> None:
        """Removes the segments that are left. To be called when all workers have ended.

        Those of arrays that this process still has are removed with the arrays, unless with `in_use`: where an error
        ends the process, its traceback keeps them.
        """
        if self._lock is None:
            return
        mapped = "" if in_use else Path("/proc/self/maps").read_text()
        for path in FOLDER.glob(f"{self.prefix}?*"):
            if str(path) not in mapped:
                _unlink(path)
        (FOLDER / self.prefix).unlink(missing_ok=True)
        self._lock.close()
        self._lock = None


def _new_prefix() -> str:
    return f"tcj{secrets.token_hex(3)}"


def name_after(prefix: str) -> None:
    """Makes the names of all segments that this process creates begin with `prefix`."""
    shared_memory._SHM_NAME_PREFIX = f"/{prefix}"  # Python has no other way; it adds 2 random bytes


def remove(prefix: str) -> int:
    """Removes all segments of a prefix, and last the locked file, by which others know them; returns their number."""
    found = list(FOLDER.glob(f"{prefix}?*"))
    for path in (*found, FOLDER / prefix):
        path.unlink(missing_ok=True)
    return len(found)


def _remove_dead() -> None:
    """Removes the segments whose process is dead: it no longer holds the lock. Others' files are not touched."""
    for marker in FOLDER.glob("tcj*"):
        if not re.fullmatch(TOKEN, marker.name):
            continue
        try:
            if marker.stat().st_uid != os.getuid():
                continue
            lock = held(marker)
        except (FileNotFoundError, UserError):  # just removed by another start; alive
            continue
        count = remove(marker.name)
        lock.close()
        if count:
            logging.warning("removed %d segments of shared memory that a killed run left in %s", count, FOLDER)


def _unlink(path: Path) -> None:
    """Removes a segment of this process's workers, such that Python's resource tracker knows it."""
    try:
        segment = shared_memory.SharedMemory(path.name)
        segment.close()
        segment.unlink()
    except ValueError:  # without a size: its worker ended while it was created
        path.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
