"""Writes one picture of your own images: masks, features in colours, the map of a word, or prediction errors.

  python -m launch.show --what=masks --config=configs/scenes_standard.py --image=a.jpg --output=masks.png
  python -m launch.show --what=pca --encoder=runs/photos --image=a.jpg,b.jpg --output=pca.png
  python -m launch.show --what=words --encoder=runs/photos --image=a.jpg \\
    --caption='a dog runs' --word=dog --output=words.png
  python -m launch.show --what=errors --encoder=runs/photos --image=a.jpg --caption='a dog runs' --output=errors.png

masks: several draws of a configuration's masks.
pca: patch features, minus their mean over the images, along their first three principal directions, as red, green and
  blue, each from its 2nd to its 98th percentile; --encoder is anything that tc_jepa.load_encoder opens.
words: the cosine of every patch with a word of the caption, mean over the predictor's layers, from the lowest (dark)
  to the highest (yellow).
errors: the error of predicting a patch when it is hidden, with the caption and without it, on one scale.

words and errors need a run whose predictor attends to words. Images are resized and centre-cropped as in an evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from launch import common
from tc_jepa.errors import UserError

# What to show -> the flags that it needs besides --image and --output.
NEEDED = {"masks": (), "pca": ("encoder",), "words": ("encoder", "caption", "word"), "errors": ("encoder", "caption")}
WHAT = flags.DEFINE_enum("what", None, list(NEEDED), "What to show.")
CONFIG = config_flags.DEFINE_config_file("config", None, "masks: a configuration file, instead of --encoder.")
ENCODER = common.define_workdir("encoder", "Workdir of a run; for pca also a folder with an encoder.")
STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; default: the newest.")
IMAGE = flags.DEFINE(common.PathListParser("image"), "image", [], "Image files, separated by commas.")
CAPTION = flags.DEFINE_string("caption", None, "words, errors: a caption of the images.")
WORD = flags.DEFINE_string("word", None, "words: a word of the caption, spelled as in it.")
OUTPUT = common.define_path("output", None, "The PNG file to write.")


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("what", "image", "output", *NEEDED.get(WHAT.value, ()))
    if WHAT.value == "masks" and (CONFIG.value is None) == (ENCODER.value is None):
        raise UserError("--what=masks needs either --config=FILE or --encoder=WORKDIR")
    output = Path(OUTPUT.value)
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output}: give a PNG file in a folder that exists")
    logging.set_verbosity(logging.WARNING)
    # Imported late, so that --help and a mistyped flag are answered at once.
    from tc_jepa.report import pictures
    from tc_jepa.storage.files import replacing

    picture = pictures.stacked([pictures.side_by_side(row) for row in rows_of_pictures()])
    with replacing(output) as beside:
        beside.write_bytes(pictures.png(picture))
    print(f"written to {output}")


def rows_of_pictures():
    """Returns what the flags ask for: rows of pictures, uint8 [H, W, 3], a row per image."""
    from tc_jepa import load_encoder
    from tc_jepa.pretrained.encoder import is_run
    from tc_jepa.report import looks, looks_jepa
    from tc_jepa.storage.files import as_path

    if WHAT.value == "pca":
        encoder = load_encoder(ENCODER.value, STEP.value)
        return looks.pca_rows(encoder, looks.read_images(IMAGE.value, encoder.image_size))
    if WHAT.value == "masks":
        config = CONFIG.value or common.run_config(as_path(ENCODER.value))
        return looks_jepa.mask_rows(config, looks.read_images(IMAGE.value, config.image.size))
    path = as_path(ENCODER.value)
    if not is_run(path):
        raise UserError(f"--encoder={path} has no predictor that reads words; give the workdir of a run")
    run = looks_jepa.open_reading_run(path, common.run_config(path), STEP.value)
    images = looks.read_images(IMAGE.value, run.config.image.size)
    if WHAT.value == "words":
        return looks_jepa.word_rows(run, images, CAPTION.value, WORD.value)
    rows, errors = looks_jepa.error_rows(run, images, CAPTION.value)
    for name, (with_caption, without) in zip(IMAGE.value, errors):
        print(f"{name}: error {with_caption:.3f} with the caption, {without:.3f} without")
    return rows


if __name__ == "__main__":
    common.run(main)
