"""Captions as arrays of a fixed shape: token ids or stored vectors, with masks that exclude padding."""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from tc_jepa.data.sources import Caption
from tc_jepa.errors import UserError
from tc_jepa.storage.reading import lfs_reason, read_regular

PAD, EOS, UNKNOWN = 0, 1, 2  # T5's ids, which a vocabulary must have


def scenes_vocabulary_path() -> str:
    """The vocabulary of the scenes' captions, which is part of the package."""
    return str(Path(__file__).parents[1] / "scenes" / "vocabulary.model")


class CaptionReader(Protocol):
    """Turns captions, all texts or all word vectors, into rows of S = `words` words. Implementations pickle."""

    words: int
    blank: Caption

    def encode(self, captions: Sequence[Caption]) -> tuple[np.ndarray, np.ndarray]:
        """Words [captions, S] or [captions, S, E], and bool [captions, S]: not padding. A blank one is all padding."""


class CaptionTokenizer:
    """Turns captions into rows of S = `words` token ids, and back. Pickles.

    `model` is a SentencePiece model, as bytes or as the path of its file. `words` includes the final eos. Raises
    UserError if the file is missing or not such a model with T5's pad, eos and unk ids, or if `words` is below 2.
    """

    blank = ""

    def __init__(self, model: bytes | str | os.PathLike, words: int):
        if words < 2:
            raise UserError(f"captions.words={words} leaves no room for a token besides eos; give at least 2")
        self.words, self._pieces = words, _load(model)

    @property
    def model(self) -> bytes:
        """The SentencePiece model as bytes: equal for equal vocabularies."""
        return self._pieces.serialized_model_proto()

    @property
    def vocabulary_size(self) -> int:
        return self._pieces.get_piece_size()

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32 [len(captions), S], and bool of the same shape: not padding.

        Each caption ends with eos, even if it was cut; the rest of its row is PAD. A blank caption is all padding.
        """
        ids = np.full((len(captions), self.words), PAD, np.int32)
        lengths = np.zeros((len(captions), 1), np.int32)
        for row, caption in enumerate(captions):
            if not is_blank(caption):
                pieces = [*self._pieces.encode(caption)[: self.words - 1], EOS]
                ids[row, : len(pieces)] = pieces
                lengths[row] = len(pieces)
        return ids, np.arange(self.words) < lengths

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """The number of ids of each caption before it is cut to S, eos included."""
        # One at a time: SentencePiece starts threads for a list, which takes five times as long for one image.
        return [len(self._pieces.encode(caption)) + 1 for caption in captions]

    def decode(self, ids: np.ndarray) -> str:
        """The text of one row of ids [S], without eos and padding."""
        return self._pieces.decode(np.asarray(ids).tolist())


def is_blank(caption: Caption) -> bool:
    """Whether a caption is empty: only white space, or no vectors."""
    return not (caption.strip() if isinstance(caption, str) else len(caption))


def sample_captions(candidates: Sequence[Caption], count: int, rng: np.random.Generator) -> tuple[Caption, ...]:
    """Up to `count` of the candidates that are not blank, in random order, without replacement."""
    present = [caption for caption in candidates if not is_blank(caption)]
    return tuple(present[i] for i in rng.permutation(len(present))[:count])


def caption_arrays(
    candidates: Sequence[Caption], count: int, reader: CaptionReader | None, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The fields of a Batch for one image, with C = `count` captions of S words, sampled from the candidates.

    caption_words as the reader returns them, [C, S] or [C, S, E]; word_valid bool [C, S]; caption_valid bool [C]. If
    the image has fewer captions, the last rows are 0 and not valid. Without a reader C = S = 0, and nothing is drawn.
    """
    if reader is None:
        empty = np.zeros((0, 0), np.int32)
        return {"caption_words": empty, "word_valid": empty.astype(bool), "caption_valid": np.zeros(0, bool)}
    sampled = sample_captions(candidates, count, rng)
    words, valid = reader.encode(sampled + (reader.blank,) * (count - len(sampled)))
    return {"caption_words": words, "word_valid": valid, "caption_valid": np.arange(count) < len(sampled)}


def _load(model: bytes | str | os.PathLike) -> sentencepiece.SentencePieceProcessor:
    name, pieces = "given as bytes" if isinstance(model, bytes) else model, sentencepiece.SentencePieceProcessor()
    try:
        content = model if isinstance(model, bytes) else read_regular(model)
        pieces.LoadFromSerializedProto(content)
    except OSError as error:
        raise UserError(f"vocabulary {name} cannot be read ({error.strerror}): give a SentencePiece model") from error
    except RuntimeError as error:
        reason = lfs_reason(content) or "give a file written by spm_train"
        raise UserError(f"vocabulary {name} is not a SentencePiece model: {reason}") from error
    found = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    if found != (PAD, EOS, UNKNOWN):
        fix = f"train it with --pad_id={PAD} --eos_id={EOS} --unk_id={UNKNOWN} --bos_id=-1"
        raise UserError(f"vocabulary {name} has pad, eos, unk ids {found}, not T5's {(PAD, EOS, UNKNOWN)}: {fix}")
    return pieces
