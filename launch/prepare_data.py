"""Prepare data: a folder of images with captions, or drawn scenes, into one folder that --config.data.path takes.

  python -m launch.prepare_data --source=folder --images=DIR --captions=FILE.jsonl --output=DIR [--vocabulary=FILE]
  python -m launch.prepare_data --source=scenes --count=10000 --output=DIR

captions.jsonl holds one JSON object a line: "file", relative to --images; "captions", a list of strings, which may be
empty; and optionally "split" (train, val or test; train when absent), "label" (a string), "labels" (a list of strings)
and "mask" (relative to --images: a PNG of class indices, 255 = ignore, as large as the upright image). Label, labels
and mask are each on every line or on none. Other keys are ignored.

The output is a TFDS dataset in ArrayRecord form. It appears when it is whole; a command that fails leaves nothing.
"""

from collections.abc import Sequence
import os
import signal

from absl import flags

from launch import common
from tc_jepa.errors import UserError

SOURCE = flags.DEFINE_enum("source", None, ["folder", "scenes"], "What to prepare: images, or drawn scenes.")
IMAGES = flags.DEFINE_string("images", None, "folder: the directory that files and masks are relative to.")
CAPTIONS = flags.DEFINE_string("captions", None, "folder: the captions.jsonl.")
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "folder: name, leave out and count images that do not decode.")
COUNT = flags.DEFINE_integer("count", None, "scenes: how many to train on; val and test get a tenth as many each.")
SEED = flags.DEFINE_integer("seed", 0, "scenes: the seed that they are drawn from.")
SIZE = flags.DEFINE_integer("size", 64, "scenes: width and height in pixels.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to write. It must not exist yet.")
VOCABULARY = flags.DEFINE_string(
    "vocabulary",
    None,
    "A SentencePiece model with T5's ids (pad 0, eos 1, unk 2) to store with the data. Scenes bring their own.",
)

NEEDED = {"folder": ("images", "captions", "output"), "scenes": ("count", "output")}
UNUSED = {"folder": ("count", "seed", "size"), "scenes": ("images", "captions", "skip_bad")}


def main(argv: Sequence[str]) -> None:
    del argv
    check_flags()
    # OpenCV reads this when it is first imported. Its lines on a broken image would bury the one that names the file.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from tc_jepa.data import prepare

    # A scheduler's SIGTERM ends the command as Ctrl-C does: nothing half-written stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if SOURCE.value == "folder":
        summary = prepare.prepare_folder(IMAGES.value, CAPTIONS.value, OUTPUT.value, VOCABULARY.value, SKIP_BAD.value)
    else:
        summary = prepare.prepare_scenes(COUNT.value, OUTPUT.value, SEED.value, SIZE.value, VOCABULARY.value)
    print(f"{OUTPUT.value}: {summary}")


def check_flags() -> None:
    """Refuses a missing flag, and one that the chosen source would ignore."""
    if SOURCE.value is None:
        raise UserError("give --source=folder or --source=scenes")
    for name in NEEDED[SOURCE.value]:
        if flags.FLAGS[name].value in (None, ""):
            raise UserError(f"--source={SOURCE.value} needs --{name}; see --help")
    for name in UNUSED[SOURCE.value]:
        if flags.FLAGS[name].present:
            raise UserError(f"--source={SOURCE.value} has no use for --{name}; leave it out")


if __name__ == "__main__":
    common.run(main)
