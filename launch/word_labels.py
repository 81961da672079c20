"""Make a probe of captioned photographs that nobody labelled: their labels are the captions' most frequent words.

  python -m launch.word_labels --captions=PHOTOS/captions.jsonl --split=val --output=probe.jsonl
  python -m launch.prepare_data --source=folder --images=PHOTOS --captions=probe.jsonl --output=data/probe
  python -m launch.evaluate --encoder=runs/photos --data=data/probe

Writes the lines of one split, which pretraining must not have seen, with "labels": those of the --count most frequent
content words of that split's captions that an image's own captions have. A share of the images becomes split train, to
fit probes on, the others test.
"""

from collections.abc import Sequence
import json
from pathlib import Path

from absl import flags

from launch import common
from tc_jepa.errors import UserError

CAPTIONS = common.define_path("captions", None, "A captions.jsonl, as launch.prepare_data reads it.")
SPLIT = flags.DEFINE_string("split", "val", "The split whose images are labelled.")
COUNT = flags.DEFINE_integer("count", 50, "How many words are labels.", lower_bound=1)
FIT_SHARE = flags.DEFINE_float("fit_share", 0.7, "Share of the images that becomes split train.", 0.0, 1.0)
OUTPUT = common.define_path("output", None, "The jsonl file to write.")


def main(argv: Sequence[str]) -> None:
    del argv
    for name in ("captions", "output"):
        if not flags.FLAGS[name].value:
            raise UserError(f"give --{name}; see --help")
    from tc_jepa.data.prepare.word_labels import label_by_words
    from tc_jepa.storage.files import refuse_existing, replace_text

    path, output = Path(CAPTIONS.value), Path(OUTPUT.value)
    refuse_existing(output)
    if not path.is_file():
        raise UserError(f"--captions={path}: there is no such file")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}:{number} is not JSON ({error})") from error
        if not isinstance(line, dict) or not isinstance(line.get("captions"), list):
            raise UserError(f'{path}:{number} has no list "captions"')
        lines.append(line)
    labelled, words = label_by_words(lines, SPLIT.value, COUNT.value, FIT_SHARE.value)
    replace_text(output, "".join(json.dumps(line) + "\n" for line in labelled))
    print(f"{output}: {len(labelled)} images of split {SPLIT.value}, labelled by {len(words)} words:")
    print(", ".join(words))


if __name__ == "__main__":
    common.run(main)
