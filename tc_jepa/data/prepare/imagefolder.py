"""Images in folders that are named after their classes."""

from collections.abc import Iterator, Sequence
import functools
from pathlib import Path

from tc_jepa.data.prepare import dataset, pictures, texts, trees
from tc_jepa.data.prepare.dataset import BadImage, Record
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.sources import LabelSet
from tc_jepa.errors import UserError
from tc_jepa.storage.files import refuse_existing

LISTED = 5  # classes that an error message lists


def prepare_imagefolder(images: str, output: str, skip_bad: bool = False, workers: int = 0) -> Summary:
    """Writes the images of `images`/SPLIT/CLASS, or deeper below, with their classes to the new folder `output`.

    sources.SOURCES["imagefolder"] describes the layout. `skip_bad` and `workers` are as in prepare_folder. Links and
    hidden files are treated as in trees.py; interrupted work can be resumed. Raises UserError, which names the folder
    or file, for classes that only some splits have, a class without images, and a file directly in a split.
    """
    root = Path(images)
    refuse_existing(Path(output))
    folders = trees.split_folders(root, "images")
    found = {split: _files_by_class(root, folder.name) for split, folder in folders.items()}
    _check_same({folders[split].name: members.keys() for split, members in found.items()}, root)
    classes = sorted(next(iter(found.values())))
    shards = [
        shard
        for split, members in found.items()
        for shard in trees.shards(split, [(name,) for names in members.values() for name in names], [root], classes)
    ]
    features = dataset.features({"label": LabelSet("single", tuple(classes))})
    spec = dataset.DatasetSpec(functools.partial(_read, root.resolve()), features, skip_bad=skip_bad)
    settings = {"source": "imagefolder", "images": str(root.resolve())}
    return dataset.write(Path(output), spec, shards, settings, workers)


def _read(root: Path, items: Sequence[tuple[str]]) -> Iterator[Record | BadImage]:
    """Reads images; their paths, relative to `root`, begin with split and class."""
    for (name,) in items:
        record = Record({"file": name, "label": name.split("/")[1]})
        yield pictures.read_record(root / name, str(root / name), "correct or remove it", record)


def _files_by_class(root: Path, split: str) -> dict[str, list[str]]:
    """The files of each class, relative to `root`."""
    found = {}
    for entry in trees.entries(root / split):
        if not entry.is_dir():
            raise UserError(f"{root / split / entry.name} lies directly in a split; move it into a folder of its class")
        name = texts.class_name(texts.string(entry.name, "class", str(root / split)), str(root / split))
        found[name] = list(trees.files_below(root, f"{split}/{name}"))
        if not found[name]:
            raise UserError(f"{root / split / name} has no images; add some, or remove the folder")
    if not found:
        raise UserError(f"{root / split} has no folders of classes; move images into {root / split}/CLASS")
    return found


def _check_same(classes: dict[str, Sequence[str]], root: Path) -> None:
    """Raises UserError for classes that only some splits have."""
    shared = set.intersection(*map(set, classes.values()))
    parts = []
    for split, names in classes.items():
        if alone := [name for name in names if name not in shared]:
            more = f" and {len(alone) - LISTED} more" if len(alone) > LISTED else ""
            parts.append(f"{split} has {', '.join(alone[:LISTED])}{more}")
    if parts:
        raise UserError(f"splits in {root} differ in classes: {'; '.join(parts)}; give all the same")
