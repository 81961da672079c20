"""Labels for images that have only captions: the most frequent content words. An image has those of its captions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
import random
import re
from typing import Any

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from tc_jepa.data.prepare import texts
from tc_jepa.data.sources import TEST, TRAIN
from tc_jepa.errors import UserError
from tc_jepa.storage.reading import read_regular

SEED = 0


def read_listing(path: Path) -> list[dict[str, Any]]:
    """The objects in a captions.jsonl. Raises UserError, which names the line, for one without a list "captions"."""
    try:
        rows = read_regular(path).splitlines()
    except OSError as error:
        raise UserError(f"--captions={path} cannot be read ({error.strerror}); give a captions.jsonl") from error
    lines = []
    for where, row in ((f"{path}:{number}", row) for number, row in enumerate(rows, 1) if row.strip()):
        lines.append(texts.parse(row, where, 'write {"file": "...", "captions": ["..."]}'))
        texts.strings(lines[-1].get("captions"), "captions", where)
    return lines


def content_words(captions: Sequence[str]) -> set[str]:
    """The words of at least three letters that are not in scikit-learn's list of stop words, in lower case."""
    found = {word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())}
    return {word for word in found if len(word) > 2 and word not in ENGLISH_STOP_WORDS}


def label_by_words(
    lines: Sequence[Mapping[str, Any]], split: str, count: int, fit_share: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The lines of one split of a captions.jsonl, with "labels" and new splits; and the words, most common first.

    The labels are the `count` words that occur in most images; ties are broken alphabetically. A random share of the
    images, `fit_share`, becomes split train, to fit probes on, and the others become test. Raises UserError if one of
    them would be empty, or if there are too few words.
    """
    chosen = [line for line in lines if line.get("split", TRAIN) == split]
    fitted = round(fit_share * len(chosen))
    if not 0 < fitted < len(chosen):
        parts = f"do not divide into a share of {fit_share:g} and a rest"
        raise UserError(f"{len(chosen)} images of split {split!r} {parts}; give another --split or --fit_share")
    words_of = [content_words(line["captions"]) for line in chosen]
    frequency = Counter(word for words in words_of for word in words)
    words = sorted(frequency, key=lambda word: (-frequency[word], word))[:count]
    if len(words) < count:
        raise UserError(f"captions of split {split!r} have {len(words)} content words, fewer than --count={count}")
    to_fit = set(random.Random(SEED).sample(range(len(chosen)), fitted))
    labelled = [
        {**line, "split": TRAIN if i in to_fit else TEST, "labels": [word for word in words if word in words_of[i]]}
        for i, line in enumerate(chosen)
    ]
    return labelled, words
