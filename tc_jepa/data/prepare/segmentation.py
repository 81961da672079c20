"""A tree of images beside one of masks -> a dataset with masks whose classes have names."""

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from tc_jepa.data.captions.candidates import candidates
from tc_jepa.data.prepare import dataset, pictures, trees
from tc_jepa.data.prepare.dataset import Bad, Record
from tc_jepa.data.prepare.masks import Meaning, PNG, read_meaning
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.errors import UserError
from tc_jepa.storage.files import refuse_existing


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
    meaning = read_meaning(classes, first_class, ignore_index)
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
                data = self.meaning.stored(given, where)
                yield Record({"image": picture.data, "file": name, "mask": data}, candidates([], []))
            else:
                yield picture


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
