"""Folders whose first level are the splits, as imagefolder and segmentation read them.

Links are followed. Names that begin with a dot, such as the files of file managers, are ignored.
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
SPLIT_OF_FOLDER = {name: split for split, names in FOLDERS.items() for name in names}


def split_folders(root: Path, flag: str) -> dict[str, Path]:
    """The folders of the splits directly in `root`, in the order of the splits. Files beside them are ignored.

    Raises UserError, which names `flag`, if there is no split, one split twice, or another folder beside them.
    """
    if not root.is_dir():
        raise UserError(f"--{flag}={root} is not a folder; give one that contains train and val")
    present = [entry.name for entry in entries(root) if entry.is_dir()]
    found: dict[str, Path] = {}
    for name, split in SPLIT_OF_FOLDER.items():
        if name in present and found.setdefault(split, root / name) != root / name:
            raise UserError(f"--{flag}={root} has both {found[split].name} and {name}, the same split; merge them")
    if not found:
        raise UserError(f"--{flag}={root} has neither train nor val nor test; move its content into {root}/train")
    for name in present:
        if name not in SPLIT_OF_FOLDER:
            known = ", ".join(SPLIT_OF_FOLDER)
            raise UserError(f"{root / name} is not a split ({known}) but lies beside one; rename or move it")
    return found


def entries(folder: Path) -> list[os.DirEntry]:
    """The content of a folder, by name. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); make it readable") from error


def files_below(root: Path, folder: str, above: Sequence[str] = ()) -> Iterator[str]:
    """All files below root/folder, relative to `root`, in a fixed order. Raises UserError for circular links."""
    real = os.path.realpath(root / folder)
    if real in above:
        raise UserError(f"{root / folder} is a link to a folder that contains it; remove it")
    for entry in entries(root / folder):
        name = texts.string(f"{folder}/{entry.name}", "file", str(root))
        if entry.is_dir():
            yield from files_below(root, name, (*above, real))
        else:
            yield name


def shards(split: str, items: Sequence[tuple[str, ...]], roots: Sequence[Path], form: object) -> Iterator[Shard]:
    """The shards of a split. An item is one file, or several, each relative to one of `roots`.

    `form`, in JSON's types, is everything else that the records depend on, such as the classes.
    """
    head = json.dumps(form).encode()
    for index, span in enumerate(dataset.spans(len(items))):
        part = items[span.start : span.stop]
        files = [root / name for item in part for root, name in zip(roots, item, strict=True)]
        digest = pictures.digest(head + json.dumps(part).encode(), files).hex()
        yield Shard(split, index, digest, len(part), part)
