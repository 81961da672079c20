"""One picture of one's own images: what masks hide, what features see, which patches a word finds, what it is worth.

  python -m launch.show --what=masks --config=configs/quickstart.py --image=a.jpg --output=masks.png
  python -m launch.show --what=pca --encoder=runs/photos --image=a.jpg,b.jpg --output=pca.png
  python -m launch.show --what=words --encoder=runs/photos --image=a.jpg \\
    --caption='a dog runs' --word=dog --output=words.png
  python -m launch.show --what=errors --encoder=runs/photos --image=a.jpg --caption='a dog runs' --output=errors.png

masks: several draws of a configuration's masks.
pca: patch features, minus their mean over the images given, along their first three principal directions, as red, green
  and blue, each from its 2nd to its 98th percentile; --encoder is anything that tc_jepa.load_encoder opens.
words: the cosine of every patch with a word of the sentence, mean over the predictor's layers, from the lowest (dark)
  to the highest (yellow).
errors: what is hard to predict when hidden, with the sentence and without it, on one scale.

The last two need a run whose predictor attends to words. Images are resized and centre-cropped as for an evaluation.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from launch import common
from tc_jepa.errors import UserError

WHAT = flags.DEFINE_enum("what", None, ["masks", "pca", "words", "errors"], "What to show.")
CONFIG = config_flags.DEFINE_config_file("config", None, "masks: a configuration file, instead of --encoder.")
ENCODER = common.define_path("encoder", None, "Workdir of a run; pca: or a folder with an encoder.")
STEP = flags.DEFINE_integer("step", None, "Step of a run's checkpoint; default: the newest.")
IMAGE = flags.DEFINE(common.PathListParser("image"), "image", [], "Image files, separated by commas.")
CAPTION = flags.DEFINE_string("caption", None, "words, errors: a sentence about the images.")
WORD = flags.DEFINE_string("word", None, "words: a word of the sentence, as it stands there.")
OUTPUT = common.define_path("output", None, "The PNG file to write.")

MASK_DRAWS = 4  # for each image


def main(argv: Sequence[str]) -> None:
    del argv
    needed = {None: (), "masks": (), "pca": ("encoder",), "errors": ("encoder", "caption")}
    needed["words"] = (*needed["errors"], "word")
    for name in ("what", "image", "output", *needed[WHAT.value]):
        if not flags.FLAGS[name].value:
            raise UserError(f"give --{name}; see --help")
    if WHAT.value == "masks" and (CONFIG.value is None) == (ENCODER.value is None):
        raise UserError("--what=masks needs either --config=FILE or --encoder=WORKDIR")
    output = Path(OUTPUT.value)
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output={output}: give a PNG file in a folder that exists")
    logging.set_verbosity(logging.WARNING)
    # Imported here, so that --help and a mistyped flag answer at once.
    from tc_jepa.report import pictures
    from tc_jepa.storage.files import replacing

    rows = {"masks": show_masks, "pca": show_pca, "words": show_words, "errors": show_errors}[WHAT.value]()
    with replacing(output) as beside:
        beside.write_bytes(pictures.png(pictures.stacked([pictures.side_by_side(row) for row in rows])))
    print(f"written to {output}")


def read_images(size: int):
    """The images, uint8 [count, size, size, 3]."""
    import numpy as np

    from tc_jepa.data.images import decode_image
    from tc_jepa.data.transforms import resize_and_centre_crop

    images = []
    for name in IMAGE.value:
        if not Path(name).is_file():
            raise UserError(f"--image={name}: there is no such file")
        try:
            images.append(resize_and_centre_crop(decode_image(Path(name).read_bytes()), size))
        except ValueError as error:
            raise UserError(f"--image={name}: {error}; give another") from error
    return np.stack(images)


def show_masks():
    from tc_jepa.config import jepa, models
    from tc_jepa.report import pictures

    config = CONFIG.value or common.run_config(Path(ENCODER.value))
    grid, sampler = models.grid(config), jepa.masks(config)
    rows = []
    for number, image in enumerate(read_images(config.image.size)):
        drawn = [sampler.draw_at(config.train.seed, number * MASK_DRAWS + i) for i in range(MASK_DRAWS)]
        rows.append([pictures.enlarged(image, grid), *(pictures.drawn_masks(image, one, grid) for one in drawn)])
    return rows


def show_pca():
    import numpy as np

    from tc_jepa import load_encoder
    from tc_jepa.report import pictures

    encoder = load_encoder(ENCODER.value, STEP.value)
    images, side = read_images(encoder.image_size), encoder.image_size // encoder.patch_size
    colours = pictures.pca_colours(np.stack([np.asarray(encoder(image)) for image in images]))
    grid = side, side
    return [[pictures.enlarged(x, grid), pictures.patches_as_picture(c, grid)] for x, c in zip(images, colours)]


def show_words():
    from tc_jepa.report import looks, pictures

    run, grid, images = open_reading_run()
    reader = looks.word_reader(run)
    rows = []
    for image in images:
        found = looks.word_map(reader, run.experiment.reader, image, CAPTION.value, WORD.value)
        heat = pictures.heat_on_image(image, found, grid, found.min(), found.max())
        rows.append([pictures.enlarged(image, grid), heat])
    return rows


def show_errors():
    import numpy as np

    from tc_jepa.config import jepa
    from tc_jepa.report import looks, pictures

    run, grid, images = open_reading_run()
    ids, valid = run.experiment.reader.encode([CAPTION.value] * len(images))
    masks = jepa.masks(run.config)
    told, untold = looks.errors_with_and_without(looks.word_reader(run), images, ids[:, None], valid[:, None], masks)
    rows = []
    for name, image, one, other in zip(IMAGE.value, images, told, untold):
        low, high = np.nanmin([one, other]), np.nanmax([one, other])
        heats = [pictures.heat_on_image(image, x, grid, low, high) for x in (one, other)]
        rows.append([pictures.enlarged(image, grid), *heats])
        print(f"{name}: error {np.nanmean(one):.3f} with the sentence, {np.nanmean(other):.3f} without")
    return rows


def open_reading_run():
    """The run, its grid of patches and the images. UserError for a run that reads no texts."""
    from tc_jepa.config import models
    from tc_jepa.experiment.run import open_run
    from tc_jepa.pretrained.encoder import is_run

    path = Path(ENCODER.value)
    if not is_run(path):
        raise UserError(f"{path} is an encoder alone, which reads no words; give the workdir of a run")
    config = common.run_config(path)
    if config.model.text == "stored":
        raise UserError(f"{path} read stored word vectors, not texts: it cannot read a new sentence")
    run = open_run(path, config, STEP.value)
    if not run.experiment.method.attends_to_words:
        raise UserError(f"{path} has model.conditioner={config.model.conditioner}, which attends to no words")
    return run, models.grid(config), read_images(config.image.size)


if __name__ == "__main__":
    common.run(main)
