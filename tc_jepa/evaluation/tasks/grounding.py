"""Does a word's cosine map fall on its object? The pointing game, played with the predictor's attention to words.

A phrase such as "a red star" is the image's only caption. The map of its pointing word is the cosine of patch and word,
mean over the predictor's layers, with every patch in sight. The score of a phrase is the share of the highest patch
that the object covers: how often a pixel drawn from that patch hits. So chance is exactly the object's share of the
image. `on_objects` is the share that any object covers. Of that, a map that finds objects whatever the word gives
`any_object` to the right one: score / on_objects above it means that the word tells objects apart.

The IoU of a phrase is that of its object and the patches whose cosine is above a threshold, one for all phrases of a
kind, chosen on those of every fifth image; the others are scored.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.sources import Grounded, Phrase
from tc_jepa.data.transforms import resize_and_centre_crop, resize_and_centre_crop_mask
from tc_jepa.errors import UserError
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.tasks.linear import VALIDATION_STRIDE

BATCH = 128  # phrases
NO_MASK = np.zeros((0, 0), bool)
QUANTILES = np.linspace(0.0, 0.99, 34)  # of all cosines, that are tried as thresholds


class Pointed(NamedTuple):
    """One row a phrase: which test image and kind it is of, four shares in 0-1, and its map beside its object."""

    image: np.ndarray  # int [P], position among the images played with
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
    """Plays every phrase of some images that the crop shows and the run's captions hold. UserError without any."""
    rows, found = [], []
    for position, index in enumerate(indices):
        image = resize_and_centre_crop(source[int(index)].image, image_size)
        phrases = [p for p in source.phrases(int(index)) if is_read(tokenizer, p)]
        covered = [coverage(resize_and_centre_crop_mask(p.mask, image_size), reader.grid) for p in phrases]
        everything = coverage(resize_and_centre_crop_mask(source.objects_mask(int(index)), image_size), reader.grid)
        for phrase, own in zip(phrases, covered):
            if not own.any():  # the crop has left it out
                continue
            # Without its mask, of which there would be many in memory.
            rows.append((image, phrase._replace(mask=NO_MASK), own, everything))
            found.append((position, phrase.kind, own.mean(), own.mean() / max(everything.mean(), 1e-9)))
    if not rows:
        raise UserError("no image has a phrase that names one of its objects alone; give --data=scenes")
    scores, on_objects, cosines = [], [], []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        maps = word_maps(reader, tokenizer, np.stack([row[0] for row in part]), [row[1] for row in part])
        places = maps.argmax(axis=1)
        cosines.append(maps)
        scores += [own[place] for (_, _, own, _), place in zip(part, places)]
        on_objects += [everything[place] for (*_, everything), place in zip(part, places)]
    position, kind, chance, any_object = (np.array(column) for column in zip(*found))
    covered = np.stack([own for _, _, own, _ in rows])
    return Pointed(
        position, kind, np.array(scores), np.array(on_objects), chance, any_object, np.concatenate(cosines), covered
    )


class Overlap(NamedTuple):
    """One row a phrase: which test image it is of, and its IoU with its object."""

    image: np.ndarray  # int [P]
    iou: np.ndarray  # float [P]
    everything: np.ndarray  # float [P], the IoU of the whole image: what a map that knows nothing can have


def overlap(pointed: Pointed, kind: str) -> Overlap:
    """The phrases of one kind, of the images that did not choose the threshold. UserError where none is left."""
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
    """Each phrase's map on its image, float32 [B, N]: the mean over the pieces of its word."""
    ids, valid = tokenizer.encode([phrase.caption for phrase in phrases])
    chosen = np.stack([word_pieces(tokenizer, row, phrase.word) for row, phrase in zip(ids, phrases)])
    padding = (0, -len(images) % BATCH)  # one compiled shape

    def padded(x):
        return np.pad(x, [padding, *[(0, 0)] * (x.ndim - 1)])

    cosines = reader.cosines(padded(images), padded(ids[:, None]), padded(valid[:, None]))[: len(images), :, 0]
    return np.einsum("bns,bs->bn", cosines, chosen / chosen.sum(axis=1, keepdims=True)).astype(np.float32)


def is_read(tokenizer: CaptionTokenizer, phrase: Phrase) -> bool:
    """Whether the caption keeps its word when it is cut to the run's number of words."""
    ids, _ = tokenizer.encode([phrase.caption])
    return find_pieces(tokenizer, ids[0], phrase.word) is not None


def word_pieces(tokenizer: CaptionTokenizer, ids: np.ndarray, word: str) -> np.ndarray:
    """Which of a caption's ids [S] spell a word, its first occurrence: bool [S]. UserError where it is not there."""
    found = find_pieces(tokenizer, ids, word)
    if found is None:
        raise UserError(
            f"{word!r} is not a word of the caption {tokenizer.decode(ids)!r}; give one that is, as it stands"
        )
    return found


def find_pieces(tokenizer: CaptionTokenizer, ids: np.ndarray, word: str) -> np.ndarray | None:
    """word_pieces; None where the word is not there."""
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
