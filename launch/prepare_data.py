"""Prepare data: images with captions, labels or masks, or drawn scenes, as one folder that --config.data.path takes.

  python -m launch.prepare_data --source=KIND ... --output=DIR

The output is a TFDS dataset in ArrayRecord form, with histograms of its captions in captions.json and captions.png. It
appears when it is complete. If the command is killed or stops at bad input, finished shards stay in OUTPUT.partial, and
the same command continues there; if no shard is finished, nothing is left. tc_jepa/data/README.md says how to get the
usual datasets into one of these layouts:
"""

from collections.abc import Sequence
import os
from pathlib import Path
import signal
import sys

from absl import flags

from configs import base
from launch import common
from tc_jepa.data.prepare.sources import CLASS_FLAGS, COMMON_FLAGS, describe_sources, prepare_function, SOURCES
from tc_jepa.data.sources import SPLITS
from tc_jepa.errors import UserError
from tc_jepa.storage.files import refuse_existing
from tc_jepa.storage.partial import partial_path

__doc__ += f"\n{describe_sources()}\n"


class InputParser(common.PathParser):
    """Parses [SPLIT:]PATTERN, where the pattern is a local path."""

    def parse(self, argument: str) -> str:
        split, _, pattern = argument.partition(":")
        return f"{split}:{super().parse(pattern)}" if split in SPLITS else super().parse(argument)


KINDS = "; ".join(f"{name}: {kind.summary}" for name, kind in SOURCES.items())
SOURCE = flags.DEFINE_enum("source", None, list(SOURCES), f"{KINDS}.")
IMAGES = common.define_path("images", None, "The folder of the images.")
MASKS = common.define_path("masks", None, "The folder of the masks.")
CLASSES = common.define_path("classes", None, "A file with the classes of the masks, one name per line.")
FIRST_CLASS = flags.DEFINE_integer("first_class", 0, "The value of the first of --classes in the masks.", 0, 254)
IGNORE_INDEX = flags.DEFINE_integer("ignore_index", None, "A value in the masks to ignore, besides 255.", 0, 255)
CAPTIONS = common.define_path("captions", None, "The captions.jsonl.")
LISTED = "[val:|test:]FILE of captions or questions. May be repeated."
ANNOTATIONS = flags.DEFINE_multi(InputParser("annotations"), None, "annotations", None, LISTED)
INPUTS = "[val:|test:]PATTERN of tar files. May be repeated."
INPUT = flags.DEFINE_multi(InputParser("input"), None, "input", None, INPUTS)
CAPTION_FIELDS = flags.DEFINE_list("caption_fields", ["txt"], "Texts that are one caption each.")
DESCRIPTION_FIELDS = flags.DEFINE_list("description_fields", [], "Texts whose sentences are captions.")
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "Report, leave out and count images that do not decode.")
COUNT = flags.DEFINE_integer("count", None, "Scenes to train on.")
SEED = flags.DEFINE_integer("seed", 0, "The seed that scenes are drawn from.")
SIZE = flags.DEFINE_integer("size", 64, "Width and height of scenes in pixels.")
OUTPUT = common.define_path("output", None, "The folder to write. It must not exist yet.")
MODEL = "A SentencePiece model with T5's ids (pad 0, eos 1, unk 2) to store with the data. Scenes have their own."
VOCABULARY = common.define_path("vocabulary", None, MODEL)
LONGER = "captions.words of the planned training: longer captions are counted, stored in full, and cut when read."
WORDS = flags.DEFINE_integer("words", base.get_config().captions.words, LONGER, lower_bound=2)
WORKERS = flags.DEFINE_integer("workers", None, "Processes; 0: only this one. Default: one per core.", 0)


def main(argv: Sequence[str]) -> None:
    del argv
    check_flags()
    # OpenCV reads this when it is first imported. Its messages about a broken image would bury the one with the file.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from tc_jepa.data.prepare import statistics

    # SIGTERM, as schedulers send it, ends the command like Ctrl-C, so that nothing half-written stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kind = SOURCES[SOURCE.value]
    values = {name: flags.FLAGS[name].value for name in (*kind.required, *kind.optional, *COMMON_FLAGS)}
    if WORKERS.value is None:  # the number of cores that this process may use
        values["workers"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        summary = prepare_function(SOURCE.value)(**values)
    except KeyboardInterrupt:
        partial = partial_path(Path(OUTPUT.value))
        kept = f"finished shards are in {partial}: the same command continues"
        print(f"interrupted; {kept if partial.exists() else 'nothing is left'}", file=sys.stderr)
        sys.exit(130)
    print(f"{OUTPUT.value}: {summary}")
    print(statistics.text(summary))
    if (plot := Path(OUTPUT.value) / statistics.PLOT_FILE).exists():
        print(f"plotted in {plot}")


def check_flags() -> None:
    """Raises UserError for a missing flag, for a given flag that would have no effect, and for an existing output."""
    if SOURCE.value is None:
        raise UserError(f"give --source, one of {', '.join(SOURCES)}; see --help")
    kind = SOURCES[SOURCE.value]
    for name in (*kind.required, "output"):
        if flags.FLAGS[name].value in (None, ""):
            raise UserError(f"--source={SOURCE.value} needs --{name}; see --help")
    known = {name for other in SOURCES.values() for name in (*other.required, *other.optional)}
    for name in sorted(name for name in known if flags.FLAGS[name].present):
        if name not in (*kind.required, *kind.optional):
            raise UserError(f"--{name} has no effect with --source={SOURCE.value}; leave it out")
        if name in CLASS_FLAGS and not CLASSES.value:
            raise UserError(f"--{name} has no effect without --classes; give that too")
    refuse_existing(Path(OUTPUT.value))


if __name__ == "__main__":
    common.run(main)
