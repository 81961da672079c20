"""Trains the SentencePiece vocabulary of the scenes' captions; vocabulary.model was made by

    python -m tc_jepa.data.scenes.vocabulary --output=tc_jepa/data/scenes/vocabulary.model

The command is deterministic. Every word of the captions is one piece; all lower-case letters and digits are pieces
too, so that other lower-case English can be encoded.
"""

from collections.abc import Iterator
import io
from pathlib import Path
import string

from absl import app, flags
import sentencepiece

from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import TRAIN

SCENES = 2000
SIZE = 352  # enough for BPE to reach every word


def captions(scenes: int) -> Iterator[str]:
    """All captions of the first training scenes of seed 0."""
    source = SceneSource(seed=0, split=TRAIN, count=scenes, size=1)
    for index in range(scenes):
        yield from source[index].captions


def train(scenes: int = SCENES) -> bytes:
    """A SentencePiece model in T5's id convention, from the captions of that many scenes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=captions(scenes),
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


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    Path(flags.FLAGS.output).write_bytes(train())


if __name__ == "__main__":
    # Not at import: other commands in the same process define --output too.
    flags.DEFINE_string("output", None, "File to write the SentencePiece model to.", required=True)
    app.run(main)
