"""Pictures that only a JEPA has: its masks, which patches a word finds, and how well hidden patches are predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from tc_jepa.batch import JepaBatch
from tc_jepa.config import jepa
from tc_jepa.data.captions.tokenizer import CaptionReader, CaptionTokenizer
from tc_jepa.data.sources import Captioned
from tc_jepa.data.transforms import resize_and_centre_crop
from tc_jepa.errors import UserError
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.tasks.grounding import find_pieces, word_pieces
from tc_jepa.experiment.experiment import Experiment
from tc_jepa.experiment.run import open_run, TrainedRun
from tc_jepa.masking.masks import Masks, MaskSampler
from tc_jepa.report import pictures
from tc_jepa.report.looks import Figure, Gallery

INPUTS = 6  # images whose masks and captions are drawn
READ = 4  # held-out images with maps of words and errors
ERROR_DRAWS = 12  # masks that an error map is the mean over
MASK_DRAWS = 4  # masks that are drawn for one image of launch.show

Rows = list[list[np.ndarray]]  # rows of pictures, uint8 [H, W, 3]


def galleries(run: TrainedRun, source: Captioned) -> list[Gallery]:
    """Returns what the page shows of a run. `source`: held-out images."""
    about = (
        f"Step {run.step}. Left to right: the image; the cosine of each patch with a word, mean over the predictor's "
        "layers, from its lowest (dark) to its highest (yellow); the error of predicting a patch when it is hidden, "
        "with captions and without, on one scale."
    )
    figures: list[Figure] = []
    if not run.experiment.method.attends_to_words:
        about = f"No maps of words: model.conditioner={run.config.model.conditioner} has no attention to them."
    elif run.experiment.words:
        about = "No maps of words: the run read stored vectors, not texts."
    else:
        figures = word_figures(run, source)
        about = about if figures else "No maps of words: the held-out images have no captions."
    return [inputs(run.experiment), Gallery("Words and patches", about, figures, broad=True)]


def inputs(experiment: Experiment) -> Gallery:
    """Returns images of the run's first batch: crop, masks and captions exactly as in training."""
    batch: JepaBatch = experiment.first_batch(INPUTS + 1)
    # With shuffled captions, image 0 gets those of the last image of the batch, which a smaller batch does not have.
    rows = [JepaBatch(*(x[row] for x in batch)) for row in range(1, INPUTS + 1)]
    about = (
        "Images of the first batch, cropped as in training. Bright: what the context encoder sees. Outlined: the "
        "blocks to predict."
    )
    grid, reader = experiment.method.predictor.grid, experiment.reader
    about += "" if reader is None else " Below: the captions as the model receives them, decoded from their ids."
    return Gallery("What the model sees", about, [_input(row, grid, reader) for row in rows])


def _input(row: JepaBatch, grid: tuple[int, int], captions: CaptionReader | None) -> Figure:
    masks = Masks(*(getattr(row, name) for name in Masks._fields))
    sizes = ", ".join(map(str, row.target_valid.sum(axis=-1)))
    seen, dropped = row.context_valid.sum(), int(row.context_dropped)
    label = f"{seen} patches seen, {dropped} dropped; blocks to predict of {sizes} patches"
    shown = [(label, pictures.drawn_masks(row.images, masks, grid))]
    if row.context_images.size:
        shown.append(("as the context encoder sees it", pictures.drawn_masks(row.context_images, masks, grid)))
    if captions is None:
        return Figure(shown)
    if not isinstance(captions, CaptionTokenizer):
        return Figure(shown, "stored word vectors: no text to show")
    texts = [captions.decode(ids) for ids in row.caption_words[row.caption_valid]]
    return Figure(shown, "" if texts else "no caption", texts)


def word_reader(run: TrainedRun) -> FrozenReader:
    """Returns the run's predictor with what it reads of words."""
    return FrozenReader(run.experiment.method, run.params, run.extra)


def word_figures(run: TrainedRun, source: Captioned) -> list[Figure]:
    """Returns figures of the first held-out images with captions: a word's map, and errors with and without captions.

    The word is the one whose map varies most over the image.
    """
    config, tokenizer, grid = run.config, run.experiment.reader, run.experiment.method.predictor.grid
    chosen = [i for i in range(min(len(source), 64)) if source[i].captions][:READ]
    if not chosen:
        return []
    size, count = config.image.size, config.captions.per_image
    images = np.stack([resize_and_centre_crop(source[i].image, size) for i in chosen])
    captions = [list(source[i].captions[:count]) for i in chosen]
    padded = [[*texts, *[tokenizer.blank] * (count - len(texts))] for texts in captions]
    ids, valid = map(np.stack, zip(*map(tokenizer.encode, padded)))
    reader = word_reader(run)
    cosines = reader.cosines(images, ids, valid)
    errors = prediction_errors(reader, images, ids, valid, jepa.masks(config))
    figures = []
    for i, texts in enumerate(captions):
        word = liveliest_word(tokenizer, texts, ids[i], cosines[i])
        values = cosines[i][:, word.caption] @ (word.pieces / word.pieces.sum())
        own = [error[i] for error in errors]
        labels = "image", word.text, "error with captions", "without"
        drawn = [pictures.enlarged(images[i], grid), *_heats(images[i], [values], grid), *_heats(images[i], own, grid)]
        note = f"error {np.nanmean(own[0]):.2f} with captions, {np.nanmean(own[1]):.2f} without"
        figures.append(Figure(list(zip(labels, drawn)), f"{texts[word.caption]}: {note}"))
    return figures


def _heats(image: np.ndarray, maps: Sequence[np.ndarray], grid: tuple[int, int]) -> list[np.ndarray]:
    """Maps of patches over the image, on one scale."""
    low, high = np.nanmin(maps), np.nanmax(maps)
    return [pictures.heat_on_image(image, one, grid, low, high) for one in maps]


def prediction_errors(
    reader: FrozenReader, images: np.ndarray, ids_BxCxS: np.ndarray, valid_BxCxS: np.ndarray, masks: MaskSampler
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the error of each patch with captions and without, under the same masks: float32 [B, N] each."""
    variants = valid_BxCxS, np.zeros_like(valid_BxCxS)
    with_captions, without = (reader.errors(images, ids_BxCxS, valid, masks, ERROR_DRAWS) for valid in variants)
    return with_captions, without


class Word(NamedTuple):
    """A word of one of an image's captions."""

    caption: int  # its number
    text: str
    pieces: np.ndarray  # bool [S], which of the caption's ids spell it


def liveliest_word(
    tokenizer: CaptionTokenizer, captions: Sequence[str], ids_CxS: np.ndarray, cosines_NxCxS: np.ndarray
) -> Word:
    """Returns the word of three letters or more whose map varies most over the image."""
    found = []
    for number, caption in enumerate(captions):
        for text in dict.fromkeys(part.strip(".,:;!?\"'()") for part in caption.split()):
            pieces = find_pieces(tokenizer, ids_CxS[number], text) if len(text) >= 3 else None
            if pieces is not None:  # not cut off, and tokenized as it is alone
                spread = np.std(cosines_NxCxS[:, number] @ (pieces / pieces.sum()))
                found.append((float(spread), Word(number, text, pieces)))
    if not found:
        first = np.arange(ids_CxS.shape[1]) == 0
        return Word(0, tokenizer.decode(ids_CxS[0][first]), first)
    return max(found, key=lambda item: item[0])[1]


def word_map(
    reader: FrozenReader, tokenizer: CaptionTokenizer, image: np.ndarray, caption: str, word: str
) -> np.ndarray:
    """Returns the cosine of each patch of an image with a word of a caption: float32 [N], mean over layers and pieces.

    UserError where the caption has no such word.
    """
    ids, valid = tokenizer.encode([caption])
    pieces = word_pieces(tokenizer, ids[0], word)
    return reader.cosines(image[None], ids[None], valid[None])[0, :, 0] @ (pieces / pieces.sum())


def mask_rows(config: ml_collections.ConfigDict, images: np.ndarray) -> Rows:
    """Returns for each image itself and MASK_DRAWS draws of a configuration's masks over it."""
    sampler = jepa.masks(config)
    grid = sampler.grid
    rows = []
    for number, image in enumerate(images):
        drawn = [sampler.draw_at(config.train.seed, number * MASK_DRAWS + i) for i in range(MASK_DRAWS)]
        rows.append([pictures.enlarged(image, grid), *(pictures.drawn_masks(image, masks, grid) for masks in drawn)])
    return rows


def word_rows(run: TrainedRun, images: np.ndarray, caption: str, word: str) -> Rows:
    """Returns for each image itself and the map of a word of a caption."""
    reader, grid = word_reader(run), run.experiment.method.predictor.grid
    maps = [word_map(reader, run.experiment.reader, image, caption, word) for image in images]
    return [[pictures.enlarged(image, grid), *_heats(image, [one], grid)] for image, one in zip(images, maps)]


def error_rows(run: TrainedRun, images: np.ndarray, caption: str) -> tuple[Rows, list[tuple[float, float]]]:
    """Returns for each image itself and its error maps with a caption and without; and the two mean errors of each."""
    ids, valid = run.experiment.reader.encode([caption] * len(images))
    grid = run.experiment.method.predictor.grid
    errors = prediction_errors(word_reader(run), images, ids[:, None], valid[:, None], jepa.masks(run.config))
    rows = [[pictures.enlarged(image, grid), *_heats(image, own, grid)] for image, *own in zip(images, *errors)]
    return rows, [(float(np.nanmean(one)), float(np.nanmean(other))) for one, other in zip(*errors)]


def open_reading_run(path: Path, config: ml_collections.ConfigDict, step: int | None) -> TrainedRun:
    """Returns the run of a workdir whose predictor attends to words. UserError for anything else."""
    if config.model.text == "stored":
        raise UserError(f"{path} read stored word vectors, not texts: it cannot read a new sentence")
    run = open_run(path, config, step)
    if not run.experiment.method.attends_to_words:
        raise UserError(f"{path} has model.conditioner={config.model.conditioner}, which does not attend to words")
    return run
