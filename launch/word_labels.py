"""Make a classification task of captioned images without labels: the labels are the most frequent words.

  python -m launch.word_labels --captions=PHOTOS/captions.jsonl --split=val --output=probe.jsonl
  python -m launch.prepare_data --source=folder --images=PHOTOS --captions=probe.jsonl --output=data/probe
  python -m launch.evaluate --encoder=runs/photos --data=data/probe

Writes the lines of one split, which pretraining must not have seen, with "labels": of the --count most frequent content
words of that split's captions, those in the image's own captions. A share of the images becomes split train, to fit
probes on, the others test.
"""

from collections.abc import Sequence
import json
from pathlib import Path

from absl import flags

from launch import common

CAPTIONS = common.define_path("captions", None, "A captions.jsonl (launch.prepare_data --help).")
SPLIT = flags.DEFINE_string("split", "val", "The split whose images are labelled.")
COUNT = flags.DEFINE_integer("count", 50, "The number of words that are labels.", lower_bound=1)
FIT_SHARE = flags.DEFINE_float("fit_share", 0.7, "Share of the images for split train.", 0.0, 1.0)
OUTPUT = common.define_path("output", None, "The jsonl file to write.")


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("captions", "output")
    from tc_jepa.data.prepare.word_labels import label_by_words, read_listing
    from tc_jepa.storage.files import refuse_existing, replace_text

    path, output = Path(CAPTIONS.value), Path(OUTPUT.value)
    refuse_existing(output)
    labelled, words = label_by_words(read_listing(path), SPLIT.value, COUNT.value, FIT_SHARE.value)
    replace_text(output, "".join(json.dumps(line) + "\n" for line in labelled))
    print(f"{output}: {len(labelled)} images of split {SPLIT.value}, labelled by {len(words)} words:")
    print(", ".join(words))


if __name__ == "__main__":
    common.run(main)
