"""How fast a T5 encodes captions, with the network's share of the time."""

import ml_collections
import numpy as np

from tc_jepa.benchmark.figures import Figure, Figures, in_turn, Options, per_second
from tc_jepa.config import data
from tc_jepa.errors import UserError
from tc_jepa.pretrained.text import T5Captions


def measure(config: ml_collections.ConfigDict, options: Options) -> Figures:
    """Returns the rates at which the T5 of model.text_weights encodes captions of the data, and tokenises them alone.

    Raises UserError without model.text_weights, and for data without captions.
    """
    if not config.model.text_weights:
        raise UserError(
            "--what=encode needs a T5: give --config.model.text_weights=FOLDER with --config.model.text=t5",
            about="model.text_weights",
        )
    captions = texts(config, options.captions)
    encoder = T5Captions(config.model.text_weights, config.captions.words, min(options.images, len(captions)))
    words = int(encoder.tokenizer.encode(captions)[1].sum())
    seconds = in_turn(
        {"captions": lambda: encoder(captions), "tokenise": lambda: encoder.tokenizer.encode(captions)}, options.repeats
    )
    found = {f"encode/{name}": per_second(one, len(captions), "captions/s") for name, one in seconds.items()}
    found["encode/words"] = per_second(seconds["captions"], words, "words/s")
    found["encode/words_a_caption"] = Figure(words / len(captions), "words")
    return found


def texts(config: ml_collections.ConfigDict, count: int) -> list[str]:
    """Returns `count` captions of the training data, over again where it has fewer."""
    source, found = data.training_source(config), []
    for i in range(min(len(source), count)):
        found += source[i].captions
        if len(found) >= count:
            break
    if not found:
        raise UserError(f"the first {count} images of data.path have no captions", about="data.path")
    return np.resize(found, count).tolist()
