"""Encode all captions of a prepared folder with a frozen text encoder, and store the word vectors.

  python -m launch.encode_captions --data=DATA --text=T5 [--words=32] [--dtype=bfloat16] [--output=DATA/words/NAME]
  python -m launch.train --config.data.path=DATA --config.model.text=stored --config.captions.vectors=DATA/words/NAME

--words must equal the run's captions.words, and the feature flags its data.*_features. All devices are used, and with
--distributed those of several hosts, which share the shards. After an interruption the same command continues after the
last finished shard. To store the vectors of another text encoder, call
tc_jepa.write_word_vectors (tc_jepa/data/README.md, "Word vectors computed once").
"""

from collections.abc import Sequence
from pathlib import Path
import sys

from absl import flags, logging

from configs import base
from launch import common
from launch import distributed as processes
from tc_jepa.data.sources import SCENES
from tc_jepa.errors import UserError

DATA = common.define_path("data", None, "The prepared folder, written by launch.prepare_data.")
TEXT = common.define_path("text", None, "Hugging Face folder of a T5, with safetensors and spiece.model.")
OUTPUT = common.define_path(
    "output", None, "Folder to write; default: DATA/words/NAME, where NAME is that of the --text folder."
)
WORDS = flags.DEFINE_integer(
    "words", base.get_config().captions.words, "Tokens to which a caption is cut, end of sentence included."
)
IMAGE_FEATURE = flags.DEFINE_string("image_feature", "image", "The run's data.image_feature.")
CAPTION_FEATURES = flags.DEFINE_list("caption_features", [], "The run's data.caption_features.")
DESCRIPTION_FEATURES = flags.DEFINE_list("description_features", [], "The run's data.description_features.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16"], "Dtype of the stored vectors.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Captions that the T5 encodes at a time, over a host's devices.")
flags.adopt_module_key_flags(processes)  # --distributed

SAMPLED_IMAGES = 1000  # for the estimate of the size


def main(argv: Sequence[str]) -> None:
    del argv
    if DATA.value == SCENES:
        raise UserError(
            "--data=scenes are not stored; write some with launch.prepare_data --source=scenes", about="data"
        )
    if DATA.value is None or TEXT.value is None:
        raise UserError("give --data=FOLDER, written by launch.prepare_data, and --text=T5, a Hugging Face folder")
    # Imported here to keep --help and flag errors fast.
    from tc_jepa.data.prepared import FeatureNames, splits
    from tc_jepa.data.word_vectors.write import write_word_vectors
    from tc_jepa.distributed.processes import all_processes
    from tc_jepa.pretrained.text import T5Captions

    logging.set_verbosity(logging.WARNING)
    counts = splits(DATA.value)
    processes.start(stops_together=False)
    encoder = T5Captions(TEXT.value, WORDS.value, BATCH_SIZE.value)
    name = Path(TEXT.value).resolve().name
    info = encoder.info(name, DTYPE.value)
    output = Path(OUTPUT.value or Path(DATA.value) / "words" / name)
    features = FeatureNames(IMAGE_FEATURE.value, tuple(CAPTION_FEATURES.value), tuple(DESCRIPTION_FEATURES.value))
    if not output.exists():
        print_estimate(counts, encoder, info, features)
    try:
        write_word_vectors(DATA.value, str(output), encoder, info, features=features, processes=all_processes())
    except KeyboardInterrupt:
        print("interrupted; the same command continues after the last finished shard", file=sys.stderr)
        sys.exit(130)
    images = ", ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{output} has the word vectors of all captions: {images}")


def print_estimate(counts: dict[str, int], encoder, info, features) -> None:
    """Prints an estimate of the size of the output, from a sample of the captions."""
    from tc_jepa.data.prepared import PreparedSource
    from tc_jepa.data.word_vectors.folder import DTYPES

    images, captions, words, all_images = 0, 0, 0, sum(counts.values())
    for split, count in counts.items():
        source, step = PreparedSource(DATA.value, split, features), max(1, all_images // SAMPLED_IMAGES)
        for index in range(0, count, step):
            _, valid = encoder.tokenizer.encode(source.captions(index))
            images, captions, words = images + 1, captions + valid.any(axis=1).sum(), words + valid.sum()
    word = info.width * DTYPES[info.dtype](0).itemsize
    size = words / images * all_images * word
    total = f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
    print(
        f"{all_images} images, {captions / images:.2f} captions of {words / max(1, captions):.1f} words per image: "
        f"about {total} in {info.dtype}, {size / all_images / 1e3:.1f} kB per image, before compression "
        f"(estimated from {images} images)",
        flush=True,
    )


if __name__ == "__main__":
    common.run(processes.watched(main), processes.leave)
