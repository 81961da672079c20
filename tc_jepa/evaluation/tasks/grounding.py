"""grounding: whether a word's cosine map points at its object (the pointing game), and how well it covers it.

A phrase such as "a red star" is the image's only caption. The map of its pointing word is the cosine of patch and word,
averaged over the predictor's layers, with every patch visible. The score of a phrase is the share of the highest patch
that the object covers: the probability that a pixel drawn from that patch hits. So chance is exactly the object's share
of the image. `on_objects` is the share of the highest patch that any object covers. A map that finds objects
whatever the word is gives the right object the share `any_object` of it, so score / on_objects above `any_object` means
that the word distinguishes objects.

The IoU of a phrase is that of its object and the patches whose cosine is above a threshold. There is one threshold for
all phrases of a kind. The phrases of every fifth image choose it; the others are scored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.sources import Grounded, Phrase
from tc_jepa.data.transforms import resize_and_centre_crop, resize_and_centre_crop_mask
from tc_jepa.errors import UserError
from tc_jepa.evaluation.examples import VALIDATION_STRIDE
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.scores import mean_of_images
from tc_jepa.evaluation.task import Outcome, Score, Task, TaskInputs, WORDS

BATCH = 128  # phrases
NO_MASK = np.zeros((0, 0), bool)
QUANTILES = np.linspace(0.0, 0.99, 34)  # of all cosines, tried as thresholds


def run(inputs: TaskInputs) -> Outcome:
    """Scores "grounding/KIND" and "grounding_iou/KIND" for each kind of phrase, with "on_objects/..."."""
    reader, tokenizer, source = inputs.text
    found, counts = Outcome(), inputs.test.counts
    pointed = point(reader, tokenizer, source, inputs.test.rows, inputs.image_size)
    for kind in dict.fromkeys(pointed.kind.tolist()):
        rows, key = pointed.kind == kind, f"grounding/{kind}"
        found.scores[key] = mean_of_images(pointed.score[rows], pointed.image[rows], counts)
        found.numbers[f"on_objects/{key}"] = float(pointed.on_objects[rows].mean())
        found.constants[f"chance/{key}"] = float(pointed.chance[rows].mean())
        found.constants[f"any_object/{key}"] = float(pointed.any_object[rows].mean())
        overlapped = overlap(pointed, kind)
        found.scores[f"grounding_iou/{kind}"] = mean_of_images(overlapped.iou, overlapped.image, counts)
        found.constants[f"chance/grounding_iou/{kind}"] = float(overlapped.everything.mean())
    return found


TASK = Task(
    "grounding",
    run,
    needs=(WORDS,),
    scores=(
        Score("grounding", "How often the patch of the highest cosine with a word is its object's.", "pointing"),
        Score("grounding_iou", "A word's map, cut at one threshold, against its object.", "IoU"),
    ),
)


class Pointed(NamedTuple):
    """One row for each phrase: its test image and kind, four shares in 0-1, its map and its object."""

    image: np.ndarray  # int [P], position among the test images
    kind: np.ndarray  # str [P]
    score: np.ndarray  # float [P]
    on_objects: np.ndarray  # float [P]
    chance: np.ndarray  # float [P]
    any_object: np.ndarray  # float [P]
    cosines: np.ndarray  # float32 [P, N]
    covered: np.ndarray  # float [P, N], the share of each patch that the object covers


def point(
    reader: FrozenReader, tokenizer: CaptionTokenizer, source: Grounded, indices: Sequence[int], image_size: int
) -> Pointed:
    """Scores every phrase whose object the crop shows and whose word the captions keep. Raises UserError for none."""
    rows = []
    for position, index in enumerate(indices):
        image = resize_and_centre_crop(source[int(index)].image, image_size)
        everything = coverage(resize_and_centre_crop_mask(source.objects_mask(int(index)), image_size), reader.grid)
        for phrase in source.phrases(int(index)):
            own = coverage(resize_and_centre_crop_mask(phrase.mask, image_size), reader.grid)
            if own.any() and is_read(tokenizer, phrase):  # the crop may cut the object off
                # Without its mask: those of all phrases would fill the memory.
                rows.append((position, image, phrase._replace(mask=NO_MASK), own, everything))
    if not rows:
        raise UserError("no image has a phrase that names one of its objects alone; give --data=scenes")
    positions, images, phrases, covered, objects = zip(*rows)
    covered, objects = np.stack(covered), np.stack(objects)
    parts = [slice(start, start + BATCH) for start in range(0, len(rows), BATCH)]
    cosines = np.concatenate([word_maps(reader, tokenizer, np.stack(images[part]), phrases[part]) for part in parts])
    highest, chance = cosines.argmax(axis=1)[:, None], covered.mean(axis=1)
    score, on_objects = (np.take_along_axis(shares, highest, axis=1)[:, 0] for shares in (covered, objects))
    any_object = chance / np.maximum(objects.mean(axis=1), 1e-9)
    kinds = np.array([phrase.kind for phrase in phrases])
    return Pointed(np.array(positions), kinds, score, on_objects, chance, any_object, cosines, covered)


class Overlap(NamedTuple):
    """One row for each phrase: its test image, and the IoU of its map and its object."""

    image: np.ndarray  # int [P]
    iou: np.ndarray  # float [P]
    everything: np.ndarray  # float [P], the IoU of the whole image, which needs no map


def overlap(pointed: Pointed, kind: str) -> Overlap:
    """The phrases of one kind, without the images that choose the threshold. Raises UserError where none is left."""
    of_kind = pointed.kind == kind
    choosing = of_kind & (pointed.image % VALIDATION_STRIDE == 0)
    scored = of_kind & ~choosing
    if not choosing.any() or not scored.any():
        count = len(np.unique(pointed.image[of_kind]))
        raise UserError(f"grounding has only {count} images with phrases of kind {kind}; give it more test examples")
    thresholds = np.quantile(pointed.cosines[choosing], QUANTILES)
    values = [_ious(pointed.cosines[choosing], pointed.covered[choosing], t).mean() for t in thresholds]
    threshold = thresholds[int(np.argmax(values))]
    covered = pointed.covered[scored]
    return Overlap(pointed.image[scored], _ious(pointed.cosines[scored], covered, threshold), covered.mean(axis=1))


def _ious(cosines_PxN: np.ndarray, covered_PxN: np.ndarray, threshold: float) -> np.ndarray:
    chosen = cosines_PxN >= threshold
    shared = (covered_PxN * chosen).sum(axis=1)
    return shared / (covered_PxN.sum(axis=1) + chosen.sum(axis=1) - shared)


def word_maps(
    reader: FrozenReader, tokenizer: CaptionTokenizer, images: np.ndarray, phrases: Sequence[Phrase]
) -> np.ndarray:
    """Each phrase's map on its image, the mean over the tokens of its word: float32 [B, N]."""
    ids, valid = tokenizer.encode([phrase.caption for phrase in phrases])
    chosen = np.stack([word_pieces(tokenizer, row, phrase.word) for row, phrase in zip(ids, phrases)])
    padding = (0, -len(images) % BATCH)  # one compiled shape

    def padded(x):
        return np.pad(x, [padding, *[(0, 0)] * (x.ndim - 1)])

    cosines = reader.cosines(padded(images), padded(ids[:, None]), padded(valid[:, None]))[: len(images), :, 0]
    return np.einsum("bns,bs->bn", cosines, chosen / chosen.sum(axis=1, keepdims=True)).astype(np.float32)


def is_read(tokenizer: CaptionTokenizer, phrase: Phrase) -> bool:
    """Whether the word remains when the caption is cut to the run's number of tokens."""
    ids, _ = tokenizer.encode([phrase.caption])
    return find_pieces(tokenizer, ids[0], phrase.word) is not None


def word_pieces(tokenizer: CaptionTokenizer, ids: np.ndarray, word: str) -> np.ndarray:
    """The tokens [S] of a caption that spell a word, where it first occurs: bool [S]. UserError where it is absent."""
    found = find_pieces(tokenizer, ids, word)
    if found is None:
        raise UserError(f"{word!r} is not a word of the caption {tokenizer.decode(ids)!r}; give one of its words")
    return found


def find_pieces(tokenizer: CaptionTokenizer, ids: np.ndarray, word: str) -> np.ndarray | None:
    """As word_pieces; None where the word is absent."""
    wanted, _ = tokenizer.encode([word])
    pieces = [i for i in wanted[0].tolist() if i > 1]  # without padding and eos
    held = ids.tolist()
    for start in range(len(held) - len(pieces) + 1):
        if pieces and held[start : start + len(pieces)] == pieces:
            return (np.arange(len(held)) >= start) & (np.arange(len(held)) < start + len(pieces))
    return None


def coverage(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The share of each patch that a mask, bool [H, W], covers: float [N]."""
    rows, columns = grid
    H, W = mask.shape
    return mask.reshape(rows, H // rows, columns, W // columns).mean(axis=(1, 3)).ravel()
