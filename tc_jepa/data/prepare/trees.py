"""Trees of folders whose first level is the splits: what both sources of that form share.

Links are followed. Names that begin with a dot are left out, such as those that file managers leave behind.
"""

from collections.abc import Iterator, Sequence
import json
import os
from pathlib import Path

from tc_jepa.data.prepare import dataset, pictures, texts
from tc_jepa.data.prepare.dataset import Shard
from tc_jepa.data.sources import TEST, TRAIN, VALIDATION
from tc_jepa.errors import UserError

FOLDERS = {TRAIN: ("train", "training"), VALIDATION: ("val", "validation"), TEST: ("test", "testing")}


def split_folders(root: Path, flag: str) -> dict[str, Path]:
    """The splits' folders directly in `root`, in the splits' order; files beside them are left alone.

    UserError, naming `flag`, where there is none, a split twice, or a folder beside them that is none.
    """
    if not root.is_dir():
        raise UserError(f"--{flag}={root} is no folder; give one that holds train and val")
    held = [entry.name for entry in entries(root) if entry.is_dir()]
    found = {split: [name for name in names if name in held] for split, names in FOLDERS.items()}
    for names in found.values():
        if len(names) > 1:
            raise UserError(f"--{flag}={root} holds both {names[0]} and {names[1]}, which are one split; join them")
    folders = {split: root / names[0] for split, names in found.items() if names}
    if not folders:
        raise UserError(
            f"--{flag}={root} holds neither train nor val nor test; move what is there into {root}/train, and images "
            "to test on into val or test"
        )
    others = [name for name in held if root / name not in folders.values()]
    if others:
        known = ", ".join(name for names in FOLDERS.values() for name in names)
        raise UserError(f"{root / others[0]} is no split ({known}) but beside one; rename it, or move it away")
    return folders


def entries(folder: Path) -> list[os.DirEntry]:
    """What a folder holds, by name. UserError where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); make it readable") from error


def files_below(root: Path, folder: str, above: Sequence[str] = ()) -> Iterator[str]:
    """All files in root/folder and deeper, relative to `root`, in a fixed order."""
    real = os.path.realpath(root / folder)
    if real in above:
        raise UserError(f"{root / folder} is a link to a folder that it lies in; remove it")
    for entry in entries(root / folder):
        name = texts.string(f"{folder}/{entry.name}", "file", str(root))
        if entry.is_dir():
            yield from files_below(root, name, (*above, real))
        else:
            yield name


def shards(split: str, items: Sequence[tuple[str, ...]], roots: Sequence[Path], form: object) -> Iterator[Shard]:
    """A split's items, each some files relative to `roots`, cut into shards.

    `form`, in JSON's types, is all else that records depend on, such as the classes.
    """
    head = json.dumps(form).encode()
    for index, span in enumerate(dataset.spans(len(items))):
        part = items[span.start : span.stop]
        files = [root / name for item in part for root, name in zip(roots, item, strict=True)]
        digest = pictures.digest(head + json.dumps(part).encode(), files).hex()
        yield Shard(split, index, digest, len(part), part)
