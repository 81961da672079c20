"""Images in one folder and their masks in another."""

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path, PurePosixPath

from tc_jepa.data.prepare import dataset, pictures, trees
from tc_jepa.data.prepare.dataset import BadImage, Record
from tc_jepa.data.prepare.masks import MaskValues, PNG, read_mask_values
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
    """Writes images and their masks, with the names of the classes, to the new folder `output`.

    sources.SOURCES["segmentation"] describes the layout. A mask is a grey or palette PNG with the size of its upright
    image. What is stored are indices of `classes`, 255 = ignore. `skip_bad` and `workers` are as in prepare_folder.

    Raises UserError, which names the file, for an image without mask or a mask without image, of another size or with
    values that are not classes. Links and hidden files are treated as in trees.py; interrupted work can be resumed.
    """
    roots = Path(images), Path(masks)
    refuse_existing(Path(output))
    values = read_mask_values(classes, first_class, ignore_index)
    image_splits, mask_splits = (trees.split_folders(root, flag) for root, flag in zip(roots, ("images", "masks")))
    for split in sorted(image_splits.keys() ^ mask_splits.keys()):
        has, lacks = roots if split in image_splits else roots[::-1]
        raise UserError(f"{has} has the split {split} but {lacks} has not; give both the same splits")
    pairs = {split: _pairs(folder, mask_splits[split]) for split, folder in image_splits.items()}
    reader = PairReader(*(root.resolve() for root in roots), values)
    pictures.check_mask_sizes([reader.paths(*pair) for found in pairs.values() for pair in found])
    form = dataclasses.asdict(values)
    shards = [shard for split, found in pairs.items() for shard in trees.shards(split, found, roots, form)]
    spec = dataset.DatasetSpec(reader, dataset.features({}, mask=values.classes), skip_bad=skip_bad)
    settings = {"source": "segmentation", "images": str(reader.images), "masks": str(reader.masks)}
    settings |= {"classes": str(Path(classes).resolve()), "first_class": first_class, "ignore_index": ignore_index}
    return dataset.write(Path(output), spec, shards, settings, workers)


@dataclasses.dataclass(frozen=True)
class PairReader:
    """Reads images and masks, whose paths are relative to the roots of their folders."""

    images: Path
    masks: Path
    values: MaskValues

    def paths(self, name: str, mask: str) -> pictures.MaskPair:
        return pictures.MaskPair(self.images / name, self.masks / mask, f"mask {self.masks / mask}")

    def __call__(self, items: Sequence[tuple[str, str]]) -> Iterator[Record | BadImage]:
        for name, mask in items:
            pair, fix = self.paths(name, mask), "correct it, or remove it with its mask"
            yield pictures.read_record(pair.image, str(pair.image), fix, Record({"file": name}), pair, self.values)


def _pairs(images: Path, masks: Path) -> list[tuple[str, str]]:
    """The images of a split with their masks, each relative to the root of its folder."""
    unpaired = {}
    for name in trees.files_below(masks.parent, masks.name):
        path = PurePosixPath(name)
        if path.suffix.lower() != PNG:
            raise UserError(f"{masks.parent / name} is among the masks but not a {PNG} file; move it away")
        unpaired[_stem(path)] = name
    pairs, names = [], {}
    for name in trees.files_below(images.parent, images.name):
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
    """What an image and its mask have in common: the path below the split, without the file type."""
    return str(path.relative_to(path.parts[0]).with_suffix(""))
