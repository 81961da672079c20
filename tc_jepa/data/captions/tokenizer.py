"""Captions as the model reads them: ids or stored vectors in fixed shapes, with masks that say which are real."""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece

from tc_jepa.data.sources import Caption
from tc_jepa.errors import UserError

PAD, EOS, UNKNOWN = 0, 1, 2  # T5's convention, which a vocabulary must follow


def scenes_vocabulary_path() -> str:
    """The vocabulary of the scenes' captions, which comes with the package."""
    return str(Path(__file__).parents[1] / "scenes" / "vocabulary.model")


class CaptionReader(Protocol):
    """Captions of one kind to rows of S = `words` words. Implementations pickle."""

    words: int
    blank: Caption

    def encode(self, captions: Sequence[Caption]) -> tuple[np.ndarray, np.ndarray]:
        """Words, [len(captions), S] or [len(captions), S, E], and which of them are real, bool [len(captions), S].

        Nothing is real in the row of a caption that is blank.
        """


class CaptionTokenizer:
    """Captions to rows of S = `words` ids and back. Pickles.

    `model` is a SentencePiece model, as its bytes or as the path of its file. `words` counts the closing eos. Raises
    UserError where the file is missing or no such model, where its pad, eos and unk ids are not T5's, or where `words`
    leaves no room for a word beside eos.
    """

    blank = ""

    def __init__(self, model: bytes | str | os.PathLike, words: int):
        if words < 2:
            raise UserError(f"captions.words={words} leaves no room for a word beside eos: at least 2 are needed")
        if isinstance(model, bytes):
            name, proto = "given as bytes", model
        else:
            name, proto = os.fspath(model), _read(model)
        self.words = words
        self._pieces = _load(name, proto)

    @property
    def model(self) -> bytes:
        """The SentencePiece model itself: equal for equal vocabularies."""
        return self._pieces.serialized_model_proto()

    @property
    def vocabulary_size(self) -> int:
        return self._pieces.get_piece_size()

    def encode(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int32 [len(captions), S], and which of them are real, bool of the same shape.

        Each caption ends with eos, also where it had to be cut; the rest of its row is PAD. An empty caption, or one
        of white space, is missing: nothing in its row is real.
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
        """Ids that each caption has before it is cut to S, eos included; a caption is cut where this is more than S."""
        # One by one: SentencePiece starts threads for a list, which takes five times as long for one image.
        return [len(self._pieces.encode(caption)) + 1 for caption in captions]

    def decode(self, ids: np.ndarray) -> str:
        """The text of one row of ids [S], without eos and padding."""
        return self._pieces.decode(np.asarray(ids).tolist())


def is_blank(caption: Caption) -> bool:
    """Whether a caption says nothing: white space only, or no vectors."""
    return not (caption.strip() if isinstance(caption, str) else len(caption))


def sample_captions(candidates: Sequence[Caption], count: int, rng: np.random.Generator) -> tuple[Caption, ...]:
    """At most `count` of the candidates that are not blank, none twice, in random order."""
    present = [caption for caption in candidates if not is_blank(caption)]
    return tuple(present[i] for i in rng.permutation(len(present))[:count])


def caption_arrays(
    candidates: Sequence[Caption], count: int, reader: CaptionReader | None, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One image's part of a Batch, with C = `count` captions of S words, sampled from the candidates.

    caption_words as the reader gives them, [C, S] or [C, S, E]; word_valid bool [C, S]; caption_valid bool [C].
    Captions that the image lacks come last; their rows are 0 and not valid. An image without captions is normal.
    Without a reader C = S = 0, and nothing is drawn from `rng`.
    """
    if reader is None:
        empty = np.zeros((0, 0), np.int32)
        return {"caption_words": empty, "word_valid": empty.astype(bool), "caption_valid": np.zeros(0, bool)}
    sampled = sample_captions(candidates, count, rng)
    words, valid = reader.encode(sampled + (reader.blank,) * (count - len(sampled)))
    return {"caption_words": words, "word_valid": valid, "caption_valid": np.arange(count) < len(sampled)}


def _read(path: str | os.PathLike) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"vocabulary {os.fspath(path)} cannot be read ({error.strerror}): give the path of a SentencePiece model"
        ) from error


def _load(name: str, proto: bytes) -> sentencepiece.SentencePieceProcessor:
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(proto)
    except RuntimeError as error:
        raise UserError(f"vocabulary {name} is not a SentencePiece model: give a file that spm_train wrote") from error
    found = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    if found != (PAD, EOS, UNKNOWN):
        raise UserError(
            f"vocabulary {name} has pad, eos, unk ids {found}, T5's are {(PAD, EOS, UNKNOWN)}: train it with "
            f"--pad_id={PAD} --eos_id={EOS} --unk_id={UNKNOWN} --bos_id=-1"
        )
    return pieces
