"""Measures the speed of this machine's training, input or evaluation. Run nothing else meanwhile.

  python -m launch.benchmark --what=step --config=FILE [--texts=1 --texts=8] [--config.KEY=VALUE ...]
  python -m launch.benchmark --what=input --config=FILE --config.data.path=DATA [--rate=IMAGES_PER_SECOND]
  python -m launch.benchmark --what=encode --config=FILE --config.data.path=DATA --config.model.text=t5 ...
  python -m launch.benchmark --what=eval --config=FILE

Prints each figure as the median of --repeats with its quartiles. --output writes them as JSON, and --compare prints
them beside such a file of another machine, configuration or commit.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from configs import base
from configs.keys import flatten
from launch import common
from tc_jepa.benchmark import load, MEASUREMENTS

CONFIG = config_flags.DEFINE_config_file(
    common.CONFIG_FLAG, help_string="Configuration file; --config.KEY=VALUE overrides one of its keys."
)
WHAT = flags.DEFINE_enum(
    "what", None, list(MEASUREMENTS), "; ".join(f"{name}: {about}" for name, about in MEASUREMENTS.items())
)
OUTPUT = common.define_path("output", None, "File for the figures as JSON.")
COMPARE = common.define_path("compare", None, "File that --output wrote: print the figures beside it.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats of each timing; step: the steps that are timed.", 1)
IMAGES = flags.DEFINE_integer("images", 512, "input, eval: images that a timing reads; encode: captions at once.", 1)
CAPTIONS = flags.DEFINE_integer("captions", 1024, "encode: captions that a timing reads.", 1)
EXAMPLES = flags.DEFINE_integer("examples", 4000, "eval: examples that the heads are fitted on.", 6)
CLASSES = flags.DEFINE_integer("classes", 100, "eval: classes of the heads.", 2)
EPOCHS = flags.DEFINE_integer("epochs", 20, "eval: epochs of training the heads.", 1)
TEXTS = flags.DEFINE_multi_integer(
    "texts", [], "step: the price of text with so many captions an image; may be repeated.", 1
)
CONDITIONERS = flags.DEFINE_multi_enum(
    "conditioner",
    [],
    [name for name in base.CONDITIONERS if name != "none"],
    "step: the price of text by this conditioner alone; may be repeated.",
)
RATE = flags.DEFINE_float("rate", 0.0, "input: images/s of a step; prints the cores that keep up with it.", 0.0)


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("what", "config")
    logging.set_verbosity(logging.ERROR)
    # Imported here to keep --help and flag errors fast.
    from tc_jepa.benchmark import figures
    from tc_jepa.config.validate import validate

    validate(CONFIG.value)
    other = figures.read(Path(COMPARE.value)) if COMPARE.value else None
    options = figures.Options(
        repeats=REPEATS.value,
        images=IMAGES.value,
        captions=CAPTIONS.value,
        examples=EXAMPLES.value,
        classes=CLASSES.value,
        epochs=EPOCHS.value,
        texts=tuple(TEXTS.value),
        conditioners=tuple(CONDITIONERS.value),
        rate=RATE.value,
    )
    found = load(WHAT.value)(CONFIG.value, options)
    for line in figures.lines(found):
        print(line)
    if OUTPUT.value:
        figures.write(Path(OUTPUT.value), WHAT.value, flatten(CONFIG.value), found)
    if other is not None:
        print(f"beside {COMPARE.value}, here and there, and here / there; * where the quartiles do not overlap:")
        for line in figures.compared(found, other):
            print(f"  {line}")


if __name__ == "__main__":
    common.run(main)
