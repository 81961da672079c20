"""Layouts in folders whose first level are the splits: images sorted by class, and images beside masks.

Links are followed. Names that begin with a dot, such as the files of file managers, are ignored.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import json
import os
from pathlib import Path, PurePosixPath
import unicodedata

from tc_jepa.data.prepare import dataset, pictures, texts
from tc_jepa.data.prepare.dataset import BadImage, Record, Shard
from tc_jepa.data.prepare.pictures import MaskPair, MaskValues, PNG, read_mask_values
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.sources import LabelSet, TEST, TRAIN, VALIDATION
from tc_jepa.errors import UserError

FOLDERS = {TRAIN: ("train", "training"), VALIDATION: ("val", "validation"), TEST: ("test", "testing")}
SPLIT_OF_FOLDER = {name: split for split, names in FOLDERS.items() for name in names}
LISTED = 5  # classes that an error message lists

Items = Sequence[tuple[str, ...]]  # one or several files each, relative to the roots of their folders


def prepare_imagefolder(images: str, output: str, skip_bad: bool = False, workers: int = 0) -> Summary:
    """Writes the images of `images`/SPLIT/CLASS, or deeper below, with their classes to the new folder `output`.

    sources.SOURCES["imagefolder"] describes the layout. `skip_bad` and `workers` are as in prepare_folder. Interrupted
    work can be resumed. Raises UserError, which names the folder or file, for classes that only some splits have, a
    class without images, and a file directly in a split.
    """
    root = Path(images)
    folders = _split_folders(root, "images")
    found = {split: _files_by_class(root, folder.name) for split, folder in folders.items()}
    _check_same({folders[split].name: members.keys() for split, members in found.items()}, root)
    classes = sorted(next(iter(found.values())))
    items = {split: [(name,) for names in members.values() for name in names] for split, members in found.items()}
    features = dataset.features({"label": LabelSet("single", tuple(classes))})
    spec = dataset.DatasetSpec(functools.partial(_read_labelled, root.resolve()), features, skip_bad=skip_bad)
    settings = {"source": "imagefolder", "images": str(root.resolve())}
    return dataset.write(output, spec, _shards(items, [root], classes), settings, workers)


def _read_labelled(root: Path, items: Sequence[tuple[str]]) -> Iterator[Record | BadImage]:
    """Reads images; their paths, relative to `root`, begin with split and class."""
    for (name,) in items:
        record = Record({"file": name, "label": name.split("/")[1]})
        yield pictures.read_record(root / name, str(root / name), "correct or remove it", record)


def _files_by_class(root: Path, split: str) -> dict[str, list[str]]:
    """The files of each class, relative to `root`."""
    found = {}
    for entry in _entries(root / split):
        if not entry.is_dir():
            raise UserError(f"{root / split / entry.name} lies directly in a split; move it into a folder of its class")
        name = texts.class_name(texts.string(entry.name, "class", str(root / split)), str(root / split))
        found[name] = list(_files_below(root, f"{split}/{name}"))
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


def prepare_segmentation(
    images: str,
    masks: str,
    classes: str,
    output: str,
    first_class: int = 0,
    ignore_index: int | None = None,
    skip_bad: bool = False,
    workers: int = 0,
) -> Summary:
    """Writes images and their masks, with the names of the classes, to the new folder `output`.

    sources.SOURCES["segmentation"] describes the layout. A mask is a grey or palette PNG with the size of its upright
    image. What is stored are indices of `classes`, 255 = ignore. `skip_bad` and `workers` are as in prepare_folder.

    Raises UserError, which names the file, for an image without mask or a mask without image, of another size or with
    values that are not classes. Interrupted work can be resumed.
    """
    roots = Path(images), Path(masks)
    values = read_mask_values(classes, first_class, ignore_index)
    image_splits, mask_splits = (_split_folders(root, flag) for root, flag in zip(roots, ("images", "masks")))
    for split in sorted(image_splits.keys() ^ mask_splits.keys()):
        has, lacks = roots if split in image_splits else roots[::-1]
        raise UserError(f"{has} has the split {split} but {lacks} has not; give both the same splits")
    items = {split: _pairs(folder, mask_splits[split]) for split, folder in image_splits.items()}
    real = [root.resolve() for root in roots]
    pictures.check_mask_sizes([_mask_pair(real, item) for found in items.values() for item in found])
    features = dataset.features({}, mask=values.classes)
    spec = dataset.DatasetSpec(functools.partial(_read_masked, real, values), features, skip_bad=skip_bad)
    settings = {"source": "segmentation", "images": str(real[0]), "masks": str(real[1])}
    settings |= {"classes": str(Path(classes).resolve()), "first_class": first_class, "ignore_index": ignore_index}
    return dataset.write(output, spec, _shards(items, roots, dataclasses.asdict(values)), settings, workers)


def _read_masked(roots: Sequence[Path], values: MaskValues, items: Items) -> Iterator[Record | BadImage]:
    for item in items:
        pair, fix = _mask_pair(roots, item), "correct it, or remove it with its mask"
        yield pictures.read_record(pair.image, str(pair.image), fix, Record({"file": item[0]}), pair, values)


def _mask_pair(roots: Sequence[Path], item: tuple[str, ...]) -> MaskPair:
    image, mask = (root / name for root, name in zip(roots, item, strict=True))
    return MaskPair(image, mask, f"mask {mask}")


def _pairs(images: Path, masks: Path) -> list[tuple[str, str]]:
    """The images of a split with their masks, each relative to the root of its folder."""
    unpaired = {}
    for name in _files_below(masks.parent, masks.name):
        path = PurePosixPath(name)
        if path.suffix.lower() != PNG:
            raise UserError(f"{masks.parent / name} is among the masks but not a {PNG} file; move it away")
        if (other := unpaired.setdefault(_stem(path), name)) != name:
            raise UserError(f"{masks.parent / name} and {other} would be of the same image; rename one")
    pairs, names = [], {}
    for name in _files_below(images.parent, images.name):
        stem = _stem(PurePosixPath(name))
        if stem in names:
            raise UserError(f"{images.parent / name} and {names[stem]} would share a mask; rename one")
        if stem not in unpaired:
            raise UserError(f"{images.parent / name} has no mask {masks / stem}{PNG}; add it, or remove the image")
        names[stem] = name
        pairs.append((name, unpaired.pop(stem)))
    for name in unpaired.values():
        raise UserError(f"{masks.parent / name} has no image in {images}; remove it, or add the image")
    if not pairs:
        raise UserError(f"{images} has no images; add some, or remove the folder")
    return pairs


def _stem(path: PurePosixPath) -> str:
    """What an image and its mask have in common: the path below the split, without the file type, in Unicode's NFC."""
    return unicodedata.normalize("NFC", str(path.relative_to(path.parts[0]).with_suffix("")))


# What both layouts share


def _split_folders(root: Path, flag: str) -> dict[str, Path]:
    """The folders of the splits directly in `root`, in the order of the splits. Files beside them are ignored.

    Raises UserError, which names `flag`, if there is no split, one split twice, or another folder beside them.
    """
    if not root.is_dir():
        raise UserError(f"--{flag}={root} is not a folder; give one that contains train and val")
    present = [entry.name for entry in _entries(root) if entry.is_dir()]
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


def _entries(folder: Path) -> list[os.DirEntry]:
    """The content of a folder, by name. Raises UserError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); make it readable") from error


def _files_below(root: Path, folder: str, above: Sequence[str] = ()) -> Iterator[str]:
    """All files below root/folder, relative to `root`, in a fixed order. Raises UserError for circular links."""
    real = os.path.realpath(root / folder)
    if real in above:
        raise UserError(f"{root / folder} is a link to a folder that contains it; remove it")
    for entry in _entries(root / folder):
        name = texts.string(f"{folder}/{entry.name}", "file", str(root))
        if entry.is_dir():
            yield from _files_below(root, name, (*above, real))
        else:
            yield name


def _shards(items: Mapping[str, Items], roots: Sequence[Path], form: object) -> list[Shard]:
    """The shards of all splits. `form`, in JSON's types, is what the records depend on besides files: the classes."""
    shards, head = [], json.dumps(form).encode()
    for split, members in items.items():
        for index, span in enumerate(dataset.spans(len(members))):
            part = members[span.start : span.stop]
            files = [root / name for item in part for root, name in zip(roots, item, strict=True)]
            digest = pictures.digest(head + json.dumps(part).encode(), files).hex()
            shards.append(Shard(split, index, digest, len(part), part))
    return shards
