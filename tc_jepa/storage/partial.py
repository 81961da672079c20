"""Folders of unfinished work: a command that was stopped continues where it was when it is run again.

While a command makes the folder OUTPUT, it works in OUTPUT.partial:

  command.json  the settings that the result depends on; a command with other settings is refused
  lock          locked while a command works, so that no two work at once
  data/         finished pieces under their final names; becomes OUTPUT when all are there
  progress/     a JSON file for each finished piece, for commands that need more than its name

When a command fails, the folder stays if data/ holds a finished piece, and is removed otherwise. Several processes of
one command can fill a folder that all of them see: each makes its share of the pieces.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
from pathlib import Path
import secrets
import shutil
from typing import Any, NamedTuple, TypeVar

from tc_jepa.errors import UserError
from tc_jepa.storage.files import held, refuse_existing, replace_text
from tc_jepa.storage.reading import read_object

SETTINGS, LOCK, DATA, PROGRESS = "command.json", "lock", "data", "progress"
SHOWN = 40  # characters of a setting in a message
Piece = TypeVar("Piece")


class Processes(NamedTuple):
    """The processes of one command: the index of this one, and how many there are.

    Each must call `wait` with the same names in the same order; it returns when all have. distributed.processes has
    those of JAX, which this module does not import.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[str], None] = lambda name: None

    @property
    def first(self) -> bool:
        return self.index == 0

    def share(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Returns the pieces that this process makes."""
        return pieces[self.index :: self.count]


ALONE = Processes()


class PartialFolder:
    """A folder of unfinished work that this process has locked. As a context manager it closes, or discards on failure.

    `settings` are what the result depends on, in JSON's types. Raises UserError, before anything is changed, for a
    folder that another command is using, that has finished pieces of other settings, or that this class did not create.

    Of several processes, which open it together, the first one creates, locks, closes and removes it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], processes: Processes = ALONE):
        self.path, self.data = path, path / DATA
        self._new_parents, self._lock, self._first = [], None, processes.first
        if self._first:
            self._open(settings)
        processes.wait("folder of unfinished work")
        self.check_complete([""])

    def _open(self, settings: Mapping[str, Any]) -> None:
        path = self.path
        self._new_parents = [parent for parent in path.absolute().parents if not parent.exists()]
        if path.is_dir() and not (path / SETTINGS).is_file() and _foreign(path):
            raise UserError(f"{path} exists but was not created by this command; move it, or give another output")
        try:
            for part in (DATA, PROGRESS):
                (path / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path} cannot be created ({error.strerror}); give another output") from error
        self._lock = held(path / LOCK)
        try:
            if self.pieces():
                _check_settings(path, settings)
            else:
                replace_text(path / SETTINGS, json.dumps(settings, indent=1) + "\n")
        except BaseException:
            self.close()
            raise

    def pieces(self) -> list[Path]:
        """The finished files in data/, by name. Files that a kill left half-written end in .tmp."""
        return sorted(path for path in self.data.iterdir() if path.suffix != ".tmp")

    def records(self) -> dict[str, Any]:
        """What write_record has stored, by name."""
        return {path.stem: json.loads(path.read_text()) for path in sorted((self.path / PROGRESS).glob("*.json"))}

    def check_complete(self, names: Iterable[str]) -> None:
        """Raises UserError where data/ lacks one of these pieces, which other processes have made."""
        absent = [name for name in names if not (self.data / name).exists()]
        if absent:
            fix = "give an output that all processes see"
            raise UserError(f"{self.data / absent[0]}, which another process made, is not here; {fix}", about="output")

    def finish(self, output: Path) -> None:
        """Moves data/ to `output` and removes the rest. Of several processes only the first may call it."""
        refuse_existing(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        self.data.rename(output)
        self.discard()

    def discard(self) -> None:
        """Removes the folder with all that is in it."""
        aside = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        self.path.rename(aside)  # first, so that no other command finds half of it
        self.close()  # before its file is deleted: NFS keeps a file that is open
        shutil.rmtree(aside, ignore_errors=True)

    def close(self) -> None:
        """Unlocks the folder and leaves it for a later command."""
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "PartialFolder":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if not self._first:
            return
        if error is None or self.pieces():
            self.close()
            return
        self.discard()
        for parent in self._new_parents:
            parent.rmdir()


def partial_path(output: Path) -> Path:
    """Where an unfinished `output` is being made."""
    return output.with_name(f"{output.name}.partial")


def write_record(path: Path, name: str, values: Any) -> None:
    """Stores JSON values about the finished piece `name` of the PartialFolder at `path`. Any process may call it."""
    replace_text(path / PROGRESS / f"{name}.json", json.dumps(values))


def delete_record(path: Path, name: str) -> None:
    (path / PROGRESS / f"{name}.json").unlink()


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The keys whose values differ, with both values, shortened; "" if none."""
    names = [name for name in before | now if before.get(name) != now.get(name)]
    return ", ".join(f"{name} (there {_shown(before.get(name))}, here {_shown(now.get(name))})" for name in names)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    before, now = read_object(path / SETTINGS, "remove that folder"), json.loads(json.dumps(settings))
    if changes := describe_changes(before, now):
        fix = "give the same settings, remove that folder, or give another output"
        raise UserError(f"{path} has unfinished work of other settings: {changes}; {fix}")


def _foreign(path: Path) -> bool:
    """Whether a folder without settings has more in it than a command leaves that is killed while it starts."""
    own = {Path(LOCK), Path(DATA), Path(PROGRESS), Path(f"{SETTINGS}.tmp")}
    return any(entry.relative_to(path) not in own for entry in path.rglob("*"))


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
