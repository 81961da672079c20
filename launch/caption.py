"""Captions a folder of images with an image-to-text model, so that TC-JEPA can be trained on them.

  python -m launch.caption --images=PHOTOS --model=MODEL --output=PHOTOS/captions.jsonl [--device=cuda]
  python -m launch.prepare_data --source=folder --images=PHOTOS --captions=PHOTOS/captions.jsonl --output=data/photos

MODEL is a local Hugging Face folder of a model that transformers loads as AutoModelForImageTextToText, in safetensors.
Needs: pip install '.[caption]'. As in the paper (arXiv 2605.03245, section 4), it is asked twice, for a short and for a
detailed description, and each sentence of its answers is one caption. A model without a chat template, such as BLIP,
continues the prompts: give it beginnings of sentences, such as --short="a photo of".

The same command resumes after a kill, from OUTPUT.partial.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import flags

from launch import common

IMAGES = common.define_path("images", None, "Folder of images (jpg, jpeg, png, webp), at any depth.")
MODEL = common.define_path("model", None, "Hugging Face folder of an image-to-text model.")
OUTPUT = common.define_path("output", None, "The captions.jsonl to write.")
SHORT = flags.DEFINE_string("short", "Describe the image in short.", "The first prompt.")
DETAILED = flags.DEFINE_string("detailed", "Describe the image in detail.", "The second prompt; empty: none.")
TOKENS = flags.DEFINE_integer("tokens", 256, "Tokens of an answer, at most.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images that the model reads at once.", lower_bound=1)
DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "cuda"], "Where the model runs.")


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("images", "model", "output")
    from tc_jepa.data.prepare.captioner import caption_folder, Captioner, weights_of
    from tc_jepa.errors import UserError
    from tc_jepa.storage.files import refuse_existing

    images, model, output = Path(IMAGES.value), Path(MODEL.value), Path(OUTPUT.value)
    for name, folder in (("images", images), ("model", model)):
        if not folder.is_dir():
            raise UserError(f"--{name}={folder} is not a folder; give one", about=name)
    refuse_existing(output)
    load = partial(Captioner, model, DEVICE.value, TOKENS.value)
    about = {"weights": weights_of(model), "tokens": TOKENS.value}
    prompts = [prompt for prompt in (SHORT.value, DETAILED.value) if prompt]
    count = caption_folder(images, output, load, prompts, BATCH_SIZE.value, about)
    print(f"{output}: captions of {count} images")


if __name__ == "__main__":
    common.run(main)
