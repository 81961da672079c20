"""Trains the SentencePiece vocabulary of the scenes' captions; vocabulary.model was made by

    python -m tc_jepa.data.scenes.vocabulary > vocabulary.model

The command is deterministic. Every word of the captions is one piece; all lower-case letters and digits are pieces
too, so that other lower-case English can be encoded.
"""

import io
import string
import sys

import sentencepiece

from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import TRAIN

SCENES = 2000
SIZE = 352  # enough for BPE to reach every word


def train(scenes: int = SCENES) -> bytes:
    """A SentencePiece model in T5's id convention, from all captions of the first training scenes of seed 0."""
    model, source = io.BytesIO(), SceneSource(seed=0, split=TRAIN, count=scenes, size=1)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(caption for index in range(scenes) for caption in source[index].captions),
        model_writer=model,
        model_type="bpe",  # merges until words are whole; unigram tends to keep frequent endings separate
        vocab_size=SIZE,
        hard_vocab_limit=False,
        required_chars=string.ascii_lowercase + string.digits + ",.:'-",
        normalization_rule_name="identity",  # T5's Unicode table alone would take over 200 kB
        num_threads=1,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=1,
    )
    return model.getvalue()


if __name__ == "__main__":
    sys.stdout.buffer.write(train())
