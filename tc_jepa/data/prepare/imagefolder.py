"""Images in folders that are named after their classes."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.prepare import dataset, pictures, texts, trees
from tc_jepa.data.prepare.dataset import BadImage, Record
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.errors import UserError
from tc_jepa.storage.files import refuse_existing

LISTED = 5  # classes that an error message lists


def prepare_imagefolder(images: str, output: str, skip_bad: bool = False, workers: int = 0) -> Summary:
    """Writes the images of `images`/SPLIT/CLASS, or deeper below, with their classes to the new folder `output`.

    Splits are train, val and test, or training, validation and testing; all have the same classes. The feature `file`
    of an image is its path relative to `images`. There are no captions. Every file below a class must be an image: one
    that does not decode is an error, or with `skip_bad` is reported on stderr, left out and counted. `workers` is as
    in prepare_folder.

    Raises UserError, which names the folder or file, for classes that only some splits have, a class without images,
    and a file directly in a split. Links and hidden files are treated as in trees.py; interrupted work can be resumed.
    """
    root = Path(images)
    refuse_existing(Path(output))
    folders = trees.split_folders(root, "images")
    found = {split: _files_by_class(root, folder.name) for split, folder in folders.items()}
    _check_same({folders[split].name: list(members) for split, members in found.items()}, root)
    classes = sorted(next(iter(found.values())))
    shards = [
        shard
        for split, members in found.items()
        for shard in trees.shards(split, [(name,) for names in members.values() for name in names], [root], classes)
    ]
    features = dataset.base_features(mask=False)
    features |= {"file": tfds.features.Text(), "label": tfds.features.ClassLabel(names=classes)}
    spec = dataset.DatasetSpec(ClassReader(root.resolve()), tfds.features.FeaturesDict(features), skip_bad=skip_bad)
    settings = {"source": "imagefolder", "images": str(root.resolve())}
    return dataset.write(Path(output), spec, shards, settings, workers=workers, unit="images")


@dataclasses.dataclass(frozen=True)
class ClassReader:
    """Reads images; their paths, relative to `root`, begin with split and class."""

    root: Path

    def read(self, items: Sequence[tuple[str]]) -> Iterator[Record | BadImage]:
        for (name,) in items:
            path = self.root / name
            picture = pictures.read_image(path, str(path), "correct or remove it")
            if isinstance(picture, pictures.Picture):
                label = name.split("/")[1]
                yield Record({"image": picture.data, "file": name, "label": label}, candidates([], []))
            else:
                yield picture


def _files_by_class(root: Path, split: str) -> dict[str, list[str]]:
    """The files of each class, relative to `root`."""
    found = {}
    for entry in trees.entries(root / split):
        if not entry.is_dir():
            raise UserError(
                f"{root / split / entry.name} lies directly in a split; move it into a folder named after its class"
            )
        name = texts.class_name(texts.string(entry.name, "class", str(root / split)), str(root / split))
        found[name] = list(trees.files_below(root, f"{split}/{name}"))
        if not found[name]:
            raise UserError(f"{root / split / name} has no images; add some, or remove the folder")
    if not found:
        raise UserError(f"{root / split} has no folders of classes; move images into {root / split}/CLASS")
    return found


def _check_same(classes: Mapping[str, Sequence[str]], root: Path) -> None:
    """Raises UserError for classes that only some splits have."""
    shared = set.intersection(*map(set, classes.values()))
    alone = {split: [name for name in names if name not in shared] for split, names in classes.items()}
    parts = [f"{split} has {_listed(names)}" for split, names in alone.items() if names]
    if parts:
        raise UserError(
            f"the splits in {root} have different classes: {'; '.join(parts)}; give every split every class, or remove "
            "those"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"
