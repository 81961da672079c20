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


def split_folders(root: Path, flag: str) -> dict[str, Path]:
    """The folders of the splits directly in `root`, in the order of the splits. Files beside them are ignored.

    Raises UserError, which names `flag`, if there is no split, one split twice, or another folder beside them.
    """
    if not root.is_dir():
        raise UserError(f"--{flag}={root} is not a folder; give one that contains train and val")
    present = [entry.name for entry in entries(root) if entry.is_dir()]
    found = {split: [name for name in names if name in present] for split, names in FOLDERS.items()}
    for names in found.values():
        if len(names) > 1:
            raise UserError(f"--{flag}={root} has both {names[0]} and {names[1]}, the same split; merge them")
    folders = {split: root / names[0] for split, names in found.items() if names}
    if not folders:
        raise UserError(
            f"--{flag}={root} contains neither train nor val nor test; move its content into {root}/train, and "
            "images to test on into val or test"
        )
    others = [name for name in present if root / name not in folders.values()]
    if others:
        known = ", ".join(name for names in FOLDERS.values() for name in names)
        raise UserError(f"{root / others[0]} is not a split ({known}) but lies beside one; rename or move it")
    return folders


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
