"""The table of layouts that launch.prepare_data reads, one record per --source. Importing it loads nothing heavy.

To add a layout, write a module NAME.py in this package with a function prepare_NAME, whose arguments have the names of
flags of launch.prepare_data, and add its record to SOURCES. The function's docstring describes the layout in full.
"""

from collections.abc import Callable
import importlib
import textwrap
from typing import NamedTuple

TEXT_FLAGS = ("vocabulary", "words")
CLASS_FLAGS = ("classes", "first_class", "ignore_index")
COMMON_FLAGS = ("output", "workers")  # of every source


class SourceKind(NamedTuple):
    """One value of --source: what it reads, and the flags that apply to it besides COMMON_FLAGS."""

    summary: str
    layout: str  # for --help
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    module: str | None = None  # of this package; None: the one with the source's name


SOURCES = {
    "folder": SourceKind(
        "images and a captions.jsonl",
        'captions.jsonl has one JSON object per line: "file", relative to --images; "captions", a list of strings, '
        'which may be empty; and optionally "descriptions" (a long text or a list of them, whose sentences are '
        'captions too), "split" (train, val or test; train by default), "label" (a string), "labels" (a list of '
        'strings) and "mask" (relative to --images: a PNG of class indices, 255 = ignore, of the size of the upright '
        'image). Other keys and blank lines are ignored. A file is listed once. "label", "labels" and "mask" are each '
        'on every line or on none. Each "label" of val and test must also occur in train; "labels" that do not are '
        'reported. "questions", on any lines, is a list of objects with "question" (a string), "answers" (a list of '
        'strings) and optionally "kind" (a string). --classes names the classes of the masks, as for segmentation; '
        "grounding needs these names.",
        ("images", "captions"),
        (*CLASS_FLAGS, "skip_bad", *TEXT_FLAGS),
    ),
    "annotations": SourceKind(
        "images with published files of captions or questions",
        "--annotations is [val:|test:]FILE, and may be repeated: captions in COCO's form; questions of VQAv2, with "
        "their answers in another file; questions of GQA; dataset_NAME.json of Karpathy's splits, which says the "
        "split of each image; Flickr8k.token.txt, with lists of the images of each split. What several files say of "
        "an image is put together. An image is found by its name, or by the number at its end (139 is "
        "COCO_train2014_000000000139.jpg), anywhere below --images.",
        ("images", "annotations"),
        ("skip_bad", *TEXT_FLAGS),
    ),
    "tars": SourceKind(
        "image-text tars of img2dataset",
        "A sample is an image (jpg, jpeg, png or webp) and a .txt, a .json or both of the same name, up to its first "
        "dot. --caption_fields and --description_fields choose the texts: txt is the .txt, outputs.txt a .outputs.txt, "
        "and any other name a key of the .json. A caption field is one caption; a description field is split into "
        "sentences, each of which is a caption. --input is a pattern of files, and may be repeated: PATTERN for split "
        "train, val:PATTERN and test:PATTERN for those.",
        ("input",),
        ("caption_fields", "description_fields", "skip_bad", *TEXT_FLAGS),
    ),
    "imagefolder": SourceKind(
        "images in folders named after their classes",
        "--images contains SPLIT/CLASS/IMAGE; images may also lie deeper below their class. Splits are train, val and "
        "test (or training, validation and testing), and all have the same classes. There are no captions.",
        ("images",),
        ("skip_bad",),
        "trees",
    ),
    "segmentation": SourceKind(
        "images and masks in two folders",
        "The mask of SPLIT/NAME.jpg in --images is SPLIT/NAME.png in --masks, at any depth. --classes is a file with "
        "one class name per line: the first line names the value --first_class in the masks, the next line the next "
        "value. 255 is ignored, and --ignore_index too: VOC's masks need neither flag, ADE20k's --first_class=1 "
        "--ignore_index=0. There are no captions.",
        ("images", "masks", "classes"),
        ("first_class", "ignore_index", "skip_bad"),
        "trees",
    ),
    "scenes": SourceKind(
        "drawn scenes of coloured shapes",
        "--count training scenes of --size x --size pixels are drawn, and a tenth as many each for val and test, with "
        "captions, labels and masks.",
        ("count",),
        ("seed", "size", *TEXT_FLAGS),
    ),
}


def prepare_function(name: str) -> Callable[..., object]:
    """The function of a key of SOURCES. It takes the flags' values as keyword arguments and returns a Summary."""
    module = importlib.import_module(f"tc_jepa.data.prepare.{SOURCES[name].module or name}")
    return getattr(module, f"prepare_{name}")


def describe_sources() -> str:
    """The table as text for --help."""
    parts = []
    for name, kind in SOURCES.items():
        required = " ".join(f"--{flag}=..." for flag in (*kind.required, "output"))
        optional = ", ".join(f"--{flag}" for flag in (*kind.optional, "workers"))
        text = f"{kind.summary[0].upper()}{kind.summary[1:]}. {kind.layout} Optional flags: {optional}."
        parts.append(f"--source={name} {required}\n\n{textwrap.fill(text, width=110, break_on_hyphens=False)}")
    return "\n\n".join(parts)
