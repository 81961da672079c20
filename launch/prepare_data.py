"""Prepare data: images with captions, labels or masks, or drawn scenes, into one folder that --config.data.path takes.

  python -m launch.prepare_data --source=folder --images=DIR --captions=FILE.jsonl --output=DIR [--vocabulary=FILE]
  python -m launch.prepare_data --source=tars --input='DIR/*.tar' --output=DIR [--vocabulary=FILE]
  python -m launch.prepare_data --source=imagefolder --images=DIR --output=DIR
  python -m launch.prepare_data --source=segmentation --images=DIR --masks=DIR --classes=FILE --output=DIR
  python -m launch.prepare_data --source=scenes --count=10000 --output=DIR

captions.jsonl holds one JSON object a line: "file", relative to --images; "captions", a list of strings, which may be
empty; and optionally "descriptions" (a long text or a list of them, whose sentences are captions too), "split" (train,
val or test; train when absent), "label" (a string), "labels" (a list of strings) and "mask" (relative to --images: a
PNG of class indices, 255 = ignore, as large as the upright image). Label, labels and mask are each on every line or on
none. Every "label" of another split is one of train too; of "labels" those that are not are told. --classes names the
classes of the masks, as for segmentation, which grounding needs. Other keys are ignored.

Tars are those of img2dataset: an image with a .txt, a .json or both beside it, under the same name. --caption_fields
and --description_fields say which texts are captions, and which are split into sentences: txt is the .txt, any other
name a key of the .json.

An image folder holds DIR/SPLIT/CLASS/IMAGE, or images deeper below their class; splits are train, val and test, or
training, validation and testing, and all hold the same classes. There are no captions.

For segmentation, the mask of SPLIT/NAME.jpg in --images is SPLIT/NAME.png in --masks, at any depth. --classes is a file
with a name a line: the first is the value --first_class in the masks. 255 counts nowhere, and --ignore_index neither:
VOC's masks are read as they are, ADE20k's with --first_class=1 --ignore_index=0. tc_jepa/data/README.md says how to get
these and others.

The output is a TFDS dataset in ArrayRecord form, with histograms of its captions as captions.json and captions.png. It
appears when it is whole. When the command is killed or stops at bad input, finished shards stay in OUTPUT.partial, and
the same command goes on from there; with nothing finished, nothing is left.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import signal
import sys

from absl import flags

from configs import base
from launch import common
from tc_jepa.data.sources import SPLITS
from tc_jepa.errors import UserError


class InputParser(common.PathParser):
    """Parses [SPLIT:]PATTERN, where the pattern is a local path."""

    def parse(self, argument: str) -> str:
        split, _, pattern = argument.partition(":")
        return f"{split}:{super().parse(pattern)}" if split in SPLITS else super().parse(argument)


SOURCE = flags.DEFINE_enum(
    "source",
    None,
    ["folder", "tars", "imagefolder", "segmentation", "scenes"],
    "What to prepare: images with a captions.jsonl, tars, folders named after classes, images beside masks, scenes.",
)
IMAGES = common.define_path(
    "images",
    None,
    "folder: the directory that files and masks are relative to; imagefolder, segmentation: that of the splits.",
)
MASKS = common.define_path("masks", None, "segmentation: the directory of the masks' splits.")
CLASSES = common.define_path("classes", None, "segmentation, folder: a file with the masks' classes, a name a line.")
FIRST_CLASS = flags.DEFINE_integer(
    "first_class", 0, "The value of the first of --classes in the masks.", lower_bound=0, upper_bound=254
)
IGNORE_INDEX = flags.DEFINE_integer(
    "ignore_index",
    None,
    "With --classes: a value in the masks that counts nowhere, beside 255.",
    lower_bound=0,
    upper_bound=255,
)
CAPTIONS = common.define_path("captions", None, "folder: the captions.jsonl.")
INPUT = flags.DEFINE_multi(
    InputParser("input"),
    None,
    "input",
    None,
    "tars: a pattern of files, for split train; val:PATTERN and test:PATTERN for those. May be repeated.",
)
CAPTION_FIELDS = flags.DEFINE_list("caption_fields", ["txt"], "tars: texts that are one caption each.")
DESCRIPTION_FIELDS = flags.DEFINE_list("description_fields", [], "tars: texts whose sentences are captions.")
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "all but scenes: name, leave out and count images that do not decode.")
COUNT = flags.DEFINE_integer("count", None, "scenes: how many to train on; val and test get a tenth as many each.")
SEED = flags.DEFINE_integer("seed", 0, "scenes: the seed that they are drawn from.")
SIZE = flags.DEFINE_integer("size", 64, "scenes: width and height in pixels.")
OUTPUT = common.define_path("output", None, "The folder to write. It must not exist yet.")
VOCABULARY = common.define_path(
    "vocabulary",
    None,
    "A SentencePiece model with T5's ids (pad 0, eos 1, unk 2) to store with the data. Scenes bring their own.",
)
WORDS = flags.DEFINE_integer(
    "words",
    base.get_config().captions.words,
    "captions.words of the training to come: longer captions are counted. They are stored whole, and cut when read.",
    lower_bound=2,
)
WORKERS = flags.DEFINE_integer(
    "workers", None, "Processes; 0: only this one. Default: one a core. The result is the same.", lower_bound=0
)

NEEDED = {
    "folder": ("images", "captions", "output"),
    "tars": ("input", "output"),
    "imagefolder": ("images", "output"),
    "segmentation": ("images", "masks", "classes", "output"),
    "scenes": ("count", "output"),
}
TEXT = ("vocabulary", "words")
NAMED = ("classes", "first_class", "ignore_index")
OWN = {
    "folder": ("images", "captions", *NAMED, "skip_bad", *TEXT),
    "tars": ("input", "caption_fields", "description_fields", "skip_bad", *TEXT),
    "imagefolder": ("images", "skip_bad"),
    "segmentation": ("images", "masks", *NAMED, "skip_bad"),
    "scenes": ("count", "seed", "size", *TEXT),
}


def main(argv: Sequence[str]) -> None:
    del argv
    check_flags()
    # OpenCV reads this when it is first imported. Its lines on a broken image would bury the one that names the file.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from tc_jepa.data.prepare import statistics

    # A scheduler's SIGTERM ends the command as Ctrl-C does: nothing half-written stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = prepare()
    except KeyboardInterrupt:
        kept = Path(f"{OUTPUT.value}.partial")
        left = f"finished shards are in {kept}: the same command goes on" if kept.exists() else "nothing is left"
        print(f"interrupted; {left}", file=sys.stderr)
        sys.exit(130)
    print(f"{OUTPUT.value}: {summary}")
    print(statistics.text(summary))
    print(f"plotted in {Path(OUTPUT.value) / statistics.PLOT_FILE}")


def prepare():
    from tc_jepa.data import prepare

    workers = cores() if WORKERS.value is None else WORKERS.value
    values = {"first_class": FIRST_CLASS.value, "ignore_index": IGNORE_INDEX.value}
    if SOURCE.value == "imagefolder":
        return prepare.prepare_imagefolder(IMAGES.value, OUTPUT.value, skip_bad=SKIP_BAD.value, workers=workers)
    if SOURCE.value == "segmentation":
        places = IMAGES.value, MASKS.value, CLASSES.value, OUTPUT.value
        return prepare.prepare_segmentation(*places, **values, skip_bad=SKIP_BAD.value, workers=workers)
    shared = {"vocabulary": VOCABULARY.value, "words": WORDS.value, "workers": workers}
    if SOURCE.value == "folder":
        places = IMAGES.value, CAPTIONS.value, OUTPUT.value
        named = {"classes": CLASSES.value} | values
        return prepare.prepare_folder(*places, **named, skip_bad=SKIP_BAD.value, **shared)
    if SOURCE.value == "tars":
        fields = {"caption_fields": CAPTION_FIELDS.value, "description_fields": DESCRIPTION_FIELDS.value}
        return prepare.prepare_tars(INPUT.value, OUTPUT.value, skip_bad=SKIP_BAD.value, **fields, **shared)
    return prepare.prepare_scenes(COUNT.value, OUTPUT.value, SEED.value, SIZE.value, **shared)


def cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def check_flags() -> None:
    """Refuses a missing flag, and one that the chosen source would ignore."""
    if SOURCE.value is None:
        raise UserError(f"give --source={', '.join(NEEDED)}")
    for name in NEEDED[SOURCE.value]:
        if flags.FLAGS[name].value in (None, ""):
            raise UserError(f"--source={SOURCE.value} needs --{name}; see --help")
    others = {name for names in OWN.values() for name in names} - set(OWN[SOURCE.value])
    for name in sorted(others):
        if flags.FLAGS[name].present:
            raise UserError(f"--source={SOURCE.value} has no use for --{name}; leave it out")
    for name in NAMED[1:]:
        if flags.FLAGS[name].present and not CLASSES.value:
            raise UserError(f"--{name} says what the values of --classes are; give that too")


if __name__ == "__main__":
    common.run(main)
