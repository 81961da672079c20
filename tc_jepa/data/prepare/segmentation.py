"""A tree of images beside one of masks -> a dataset with masks whose classes have names."""

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tc_jepa.data.candidates import candidates
from tc_jepa.data.images import IGNORED
from tc_jepa.data.prepare import dataset, pictures, texts, trees
from tc_jepa.data.prepare.dataset import Bad, Record
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.errors import UserError
from tc_jepa.files import refuse_existing

PNG = ".png"


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What the values of masks mean: `first` + i is class i; `ignored` and 255 count nowhere."""

    classes: tuple[str, ...]
    first: int
    ignored: int | None

    def indices(self, mask: np.ndarray, where: str) -> np.ndarray:
        """uint8 [height, width] of a mask's values -> of class indices, 255 = ignore.

        UserError for a value that means nothing.
        """
        last = self.first + len(self.classes) - 1
        counted = (mask != IGNORED) & (True if self.ignored is None else mask != self.ignored)
        wrong = counted & ((mask < self.first) | (mask > last))
        if wrong.any():
            raise UserError(
                f"{where} holds {mask[wrong][0]}, and the {len(self.classes)} classes are {self.first} to {last}; "
                "mend it or --classes, or give --first_class, or --ignore_index for a value that counts nowhere"
            )
        return np.where(counted, mask - np.uint8(self.first), np.uint8(IGNORED))


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
    """Writes images and their masks, with the classes' names, to the new folder `output`.

    The mask of `images`/SPLIT/NAME.jpg, or of any other ending, is `masks`/SPLIT/NAME.png, at any depth below; splits
    are train, val and test, or training, validation and testing. A mask is a grey or palette PNG as large as its
    upright image. `classes` is a file with a name a line: the first is the value `first_class` in the masks, the next
    one the value after it. 255 counts nowhere, and `ignore_index` neither. Stored are indices of `classes`, 255 =
    ignore. There are no captions. `skip_bad` leaves out and counts images that do not decode; `workers` is that of
    prepare_folder.

    Raises UserError, naming the file: for an image without a mask, a mask without an image, one of another size or with
    values that are none of the classes, a bad list of classes. What dataset.write says of work under way holds, and
    what trees says of links and hidden files.
    """
    roots = Path(images), Path(masks)
    refuse_existing(Path(output))
    meaning = Meaning(_read_classes(Path(classes), first_class, ignore_index), first_class, ignore_index)
    image_splits, mask_splits = (trees.split_folders(root, flag) for root, flag in zip(roots, ("images", "masks")))
    for split in sorted(image_splits.keys() ^ mask_splits.keys()):
        has, lacks = roots if split in image_splits else roots[::-1]
        raise UserError(f"{has} has the split {split} and {lacks} has not; give both the same splits")
    form = dataclasses.asdict(meaning)
    shards = [
        shard
        for split, folder in image_splits.items()
        for shard in trees.shards(split, _pairs(folder, mask_splits[split]), roots, form)
    ]
    features = dataset.features(mask=True, classes=meaning.classes) | {"file": tfds.features.Text()}
    reader = PairReader(*(root.resolve() for root in roots), meaning)
    job = dataset.Job(reader, tfds.features.FeaturesDict(features), vocabulary=None, words=None, skip_bad=skip_bad)
    places = {"images": str(reader.images), "masks": str(reader.masks), "classes": str(Path(classes).resolve())}
    values = {"first_class": first_class, "ignore_index": ignore_index}
    command = {"source": "segmentation"} | places | values
    return dataset.write(Path(output), job, shards, command, workers=workers, unit="images")


@dataclasses.dataclass(frozen=True)
class PairReader:
    """Reads images and masks, relative to the roots of their trees."""

    images: Path
    masks: Path
    meaning: Meaning

    def read(self, items: Sequence[tuple[str, str]]) -> Iterator[Record | Bad]:
        for name, mask in items:
            path, where = self.images / name, f"mask {self.masks / mask}"
            picture = pictures.read_image(path, str(path), "mend it, or remove it with its mask")
            if isinstance(picture, pictures.Picture):
                given = pictures.read_mask(self.masks / mask, where, picture.shape)
                indices = self.meaning.indices(given.indices, where)
                unchanged = np.array_equal(indices, given.indices)
                data = given.data if unchanged else cv2.imencode(PNG, indices)[1].tobytes()
                yield Record({"image": picture.data, "file": name, "mask": data}, candidates([], []))
            else:
                yield picture


def _read_classes(path: Path, first: int, ignored: int | None) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"--classes={path} cannot be read ({error.strerror}); give a file with a name a line"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--classes={path} is not UTF-8; give a text file of names") from error
    if not lines:
        raise UserError(f"--classes={path} is empty; give the classes' names, one a line, in the order of their values")
    numbers: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        texts.class_name(name, f"{path}:{number}")
        if name in numbers:
            raise UserError(f"{path}:{number} repeats {name!r} of line {numbers[name]}; give every class its own name")
        numbers[name] = number
    if first + len(lines) > IGNORED:
        raise UserError(f"{path} has {len(lines)} lines; classes from {first} on are at most {IGNORED - first}")
    if ignored is not None and first <= ignored < first + len(lines):
        raise UserError(
            f"--ignore_index={ignored} is the value of {lines[ignored - first]!r} in {path}; say with --first_class "
            "which value the first line has, or leave --ignore_index out"
        )
    return tuple(lines)


def _pairs(images: Path, masks: Path) -> list[tuple[str, str]]:
    """Images of a split with their masks, each relative to the root of its tree."""
    unpaired = {}
    for name in trees.files_below(masks.parent, masks.name):
        path = PurePosixPath(name)
        if path.suffix.lower() != PNG:
            raise UserError(f"{masks.parent / name} is among the masks and no {PNG}; move it away")
        unpaired[_stem(path)] = name
    pairs, names = [], {}
    for name in trees.files_below(images.parent, images.name):
        stem = _stem(PurePosixPath(name))
        if stem in names:
            raise UserError(f"{images.parent / name} and {names[stem]} would have one mask; rename one")
        if stem not in unpaired:
            raise UserError(
                f"{images.parent / name} has no mask {masks / stem}{PNG}; put it there, or remove the image"
            )
        names[stem] = name
        pairs.append((name, unpaired.pop(stem)))
    for name in unpaired.values():
        raise UserError(f"{masks.parent / name} is the mask of no image in {images}; remove it, or add the image")
    if not pairs:
        raise UserError(f"{images} holds no images; put some there, or remove the folder")
    return pairs


def _stem(path: PurePosixPath) -> str:
    """What an image and its mask have in common: the path below the split, without its ending."""
    return str(path.relative_to(path.parts[0]).with_suffix(""))
