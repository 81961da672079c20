"""What a trained run sees and finds in images: the pictures of its report, from its newest checkpoint."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from tc_jepa.batch import JepaBatch
from tc_jepa.config import jepa
from tc_jepa.data.captions.tokenizer import CaptionReader, CaptionTokenizer
from tc_jepa.data.sources import Captioned
from tc_jepa.data.transforms import resize_and_centre_crop
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.evaluation.encoder import frozen_vit, FrozenEncoder
from tc_jepa.evaluation.features import FeatureStore, Part
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.tasks.grounding import word_pieces
from tc_jepa.experiment.experiment import Experiment
from tc_jepa.experiment.run import TrainedRun
from tc_jepa.masking.masks import Masks, MaskSampler
from tc_jepa.methods.method import init_encoder
from tc_jepa.report import pictures

INPUTS = 6  # images whose masks and captions are drawn
SHOWN = 6  # held-out images in colours of their features
READ = 4  # held-out images with maps of words and errors
ERROR_DRAWS = 12  # masks an error map is the mean over
BATCH = 64  # images an encoder reads at once


class Input(NamedTuple):
    """One image as the model received it."""

    picture: np.ndarray
    captions: list[str] | None  # empty: it read none; None: it read stored vectors, which have no text
    note: str


class WordLook(NamedTuple):
    """One held-out image: where a word of its captions is found, and what is hard to predict with and without words."""

    image: np.ndarray
    caption: str
    word: str
    map: np.ndarray
    with_words: np.ndarray
    without_words: np.ndarray
    note: str


def inputs(experiment: Experiment) -> list[Input]:
    """Images of the run's first batch: crop, masks and captions exactly as they were trained on."""
    batch: JepaBatch = experiment.batches(INPUTS + 1)[0]
    # Where captions are shuffled, image 0 has those of the batch's last image, which is another in a smaller batch.
    rows = range(1, INPUTS + 1)
    grid, reader = experiment.method.predictor.grid, experiment.reader
    return [_input(JepaBatch(*(x[row] for x in batch)), grid, reader) for row in rows]


def _input(row: JepaBatch, grid: tuple[int, int], captions: CaptionReader | None) -> Input:
    masks = Masks(*(getattr(row, name) for name in Masks._fields))
    picture = pictures.drawn_masks(row.images, masks, grid)
    sizes = ", ".join(map(str, row.target_valid.sum(axis=-1)))
    seen, dropped = row.context_valid.sum(), int(row.context_dropped)
    note = f"{seen} patches seen, {dropped} dropped; blocks to predict of {sizes} patches"
    if captions is None:
        return Input(picture, [], note)
    if not isinstance(captions, CaptionTokenizer):
        return Input(picture, None, note)
    return Input(picture, [captions.decode(ids) for ids in row.caption_words[row.caption_valid]], note)


def encoders(run: TrainedRun) -> dict[str, FrozenEncoder]:
    """The judged encoder, and the same at initialisation."""
    module, size = run.experiment.method.encoder, run.config.image.size
    initial = jax.jit(lambda: init_encoder(module, (size, size, 3), jax.random.key(run.config.train.seed)))()
    mesh = sharding.local_mesh()
    return {
        name: frozen_vit(module, params, image_size=size, batch_size=BATCH, mesh=mesh)
        for name, params in (("trained", run.evaluation_encoder()), ("at initialisation", initial))
    }


def spectra(found: dict[str, FrozenEncoder], source: Captioned) -> dict[str, np.ndarray]:
    """Singular values of the pooled features of held-out images, the largest as 1, in falling order; by encoder."""
    width = next(iter(found.values())).width
    features = FeatureStore().read(found, Part(source, range(min(len(source), 2 * width)), ["pooled"], "spectra"))
    values = {name: np.linalg.svd(x["pooled"], compute_uv=False) for name, x in features.items()}
    return {name: x / x[0] for name, x in values.items()}


def crops(source: Captioned, count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3], the first images of a source."""
    return np.stack([resize_and_centre_crop(source[i].image, size) for i in range(min(count, len(source)))])


def pca(found: dict[str, FrozenEncoder], images: np.ndarray, grid: tuple[int, int]) -> list[list[np.ndarray]]:
    """For each image, the image and its patches in the colours of pictures.pca_colours for each encoder."""
    colours = [pictures.pca_colours(np.asarray(encoder(images).patches)) for encoder in found.values()]
    return [
        [pictures.enlarged(image, grid), *(pictures.patches_as_picture(one[i], grid) for one in colours)]
        for i, image in enumerate(images)
    ]


def word_reader(run: TrainedRun) -> FrozenReader:
    """What the run's predictor reads of words."""
    return FrozenReader(run.experiment.method, run.params, run.extra)


def word_looks(run: TrainedRun, source: Captioned) -> list[WordLook]:
    """For the first held-out images with captions. The word is the one whose map varies most over the image."""
    config, tokenizer, grid = run.config, run.experiment.reader, run.experiment.method.predictor.grid
    chosen = [i for i in range(min(len(source), 64)) if source[i].captions][:READ]
    if not chosen:
        return []
    size, count = config.image.size, config.captions.per_image
    images = np.stack([resize_and_centre_crop(source[i].image, size) for i in chosen])
    texts = [list(source[i].captions[:count]) for i in chosen]
    ids, valid = map(
        np.stack, zip(*(tokenizer.encode([*some, *[tokenizer.blank] * (count - len(some))]) for some in texts))
    )
    reader, masks = word_reader(run), jepa.masks(config)
    cosines = reader.cosines(images, ids, valid)
    told, untold = errors_with_and_without(reader, images, ids, valid, masks)
    looks = []
    for i, some in enumerate(texts):
        number, word, where = _liveliest(tokenizer, some, ids[i], cosines[i])
        values = cosines[i][:, number] @ (where / where.sum())
        low, high = np.nanmin([told[i], untold[i]]), np.nanmax([told[i], untold[i]])
        note = f"error {np.nanmean(told[i]):.2f} with words, {np.nanmean(untold[i]):.2f} without"
        looks.append(
            WordLook(
                pictures.enlarged(images[i], grid),
                some[number],
                word,
                pictures.heat_on_image(images[i], values, grid, values.min(), values.max()),
                pictures.heat_on_image(images[i], told[i], grid, low, high),
                pictures.heat_on_image(images[i], untold[i], grid, low, high),
                note,
            )
        )
    return looks


def errors_with_and_without(
    reader: FrozenReader, images: np.ndarray, ids_BxCxS: np.ndarray, valid_BxCxS: np.ndarray, masks: MaskSampler
) -> tuple[np.ndarray, np.ndarray]:
    """The prediction error of each patch under the same masks, with the captions and with none: float32 [B, N]."""
    variants = valid_BxCxS, np.zeros_like(valid_BxCxS)
    told, untold = (reader.errors(images, ids_BxCxS, valid, masks, ERROR_DRAWS) for valid in variants)
    return told, untold


def _liveliest(
    tokenizer: CaptionTokenizer, texts: Sequence[str], ids_CxS: np.ndarray, cosines_NxCxS: np.ndarray
) -> tuple[int, str, np.ndarray]:
    """(caption, word, which of its ids) of the word of three letters or more whose map has the widest spread."""
    found = []
    for number, text in enumerate(texts):
        for word in dict.fromkeys(part.strip(".,:;!?\"'()") for part in text.split()):
            if len(word) < 3:
                continue
            try:
                where = word_pieces(tokenizer, ids_CxS[number], word)
            except UserError:  # cut off, or spelt otherwise beside its neighbours
                continue
            found.append((float(np.std(cosines_NxCxS[:, number] @ (where / where.sum()))), number, word, where))
    if not found:
        where = np.arange(ids_CxS.shape[1]) == 0
        return 0, tokenizer.decode(ids_CxS[0][where]), where
    _, number, word, where = max(found, key=lambda item: item[0])
    return number, word, where


def word_map(
    reader: FrozenReader, tokenizer: CaptionTokenizer, image: np.ndarray, caption: str, word: str
) -> np.ndarray:
    """The cosine of each patch of one image with a word of a sentence, mean over layers and pieces: float32 [N]."""
    ids, valid = tokenizer.encode([caption])
    where = word_pieces(tokenizer, ids[0], word)
    return reader.cosines(image[None], ids[None], valid[None])[0, :, 0] @ (where / where.sum())
