"""Labels for photographs that have only captions: the most frequent content words of the captions.

They make a probe of data that nobody labelled. An image has a word if one of its captions has it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import random
import re
from typing import Any

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from tc_jepa.data.sources import TEST, TRAIN
from tc_jepa.errors import UserError

SEED = 0


def content_words(captions: Sequence[str]) -> set[str]:
    """Words of three letters and more that are no stop words (scikit-learn's list), in lower case."""
    found = {word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())}
    return {word for word in found if len(word) > 2 and word not in ENGLISH_STOP_WORDS}


def label_by_words(
    lines: Sequence[Mapping[str, Any]], split: str, count: int, fit_share: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of one split of a captions.jsonl, with "labels" and new splits; and the words, the commonest first.

    The labels are the `count` words that most of its images have; of equally common ones, the first in the alphabet. A
    share of the images, drawn at random, becomes split train, to fit probes on, the others test. UserError where the
    split is empty, a part would be, or there are too few words.
    """
    chosen = [line for line in lines if line.get("split", TRAIN) == split]
    fitted = round(fit_share * len(chosen))
    if not 0 < fitted < len(chosen):
        raise UserError(f"{len(chosen)} images of split {split!r} cannot be parted {fit_share:g} to fit on and to test")
    held = [content_words(line["captions"]) for line in chosen]
    frequency = Counter(word for words in held for word in words)
    words = sorted(frequency, key=lambda word: (-frequency[word], word))[:count]
    if len(words) < count:
        raise UserError(f"the captions of split {split!r} have only {len(words)} content words, not {count}")
    to_fit = set(random.Random(SEED).sample(range(len(chosen)), fitted))
    labelled = [
        {**line, "split": TRAIN if i in to_fit else TEST, "labels": [word for word in words if word in held[i]]}
        for i, line in enumerate(chosen)
    ]
    return labelled, words
