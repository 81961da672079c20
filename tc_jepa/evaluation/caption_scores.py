"""CIDEr-D and BLEU-4 of captions, as pycocoevalcap computes them (cider_scorer.py, bleu_scorer.py).

Only the tokenizer differs: pycocoevalcap runs the Stanford PTB tokenizer, which needs Java. Here a text is in lower
case, and its words are runs of letters, digits and apostrophes.
"""

from collections import Counter
from collections.abc import Sequence
import re

import numpy as np

from tc_jepa.evaluation.scores import Measured

ORDERS = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of CIDEr-D's penalty on lengths, in bigrams
TINY, SMALL = 1e-15, 1e-9  # of bleu_scorer.py, so that nothing is divided by 0


def words(text: str) -> list[str]:
    """The words of a text."""
    return re.findall(r"[\w']+", text.lower())


def grams(text: str) -> Counter:
    """How often each n-gram occurs, of 1 to ORDERS words: tuples of words."""
    found = words(text)
    return Counter(tuple(found[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(found) - n + 1))


class Cider:
    """CIDEr-D of a text for each image against that image's references, float [N]: 10 for one that is equal to all.

    N-grams are weighted by how few images have them, so a score depends on all images. Source: Vedantam et al. 2015
    (arXiv 1411.5726), section 8, with the factor of 10.
    """

    def __init__(self, references: Sequence[Sequence[str]]):
        counted = [[grams(reference) for reference in own] for own in references]
        self._images_with = Counter(gram for own in counted for gram in set().union(*own))
        self._most = np.log(float(len(references)))
        self._references = [[self._vector(counts) for counts in own] for own in counted]

    def __call__(self, written: Sequence[str]) -> np.ndarray:
        scores = []
        for text, own in zip(written, self._references, strict=True):
            ours, our_norms, our_length = self._vector(grams(text))
            total = 0.0
            for theirs, their_norms, their_length in own:
                shared = [
                    sum(min(v, b.get(g, 0.0)) * b.get(g, 0.0) for g, v in a.items()) for a, b in zip(ours, theirs)
                ]
                norms = our_norms * their_norms
                alike = np.where(norms > 0, np.array(shared) / np.where(norms > 0, norms, 1.0), 0.0)
                total += alike.mean() * np.exp(-((our_length - their_length) ** 2) / (2 * SIGMA**2))
            scores.append(10.0 * total / max(len(own), 1))
        return np.array(scores)

    def _vector(self, counts: Counter) -> tuple[list[dict], np.ndarray, int]:
        """Weights by n, their lengths [ORDERS], and the number of bigrams."""
        weights: list[dict] = [{} for _ in range(ORDERS)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (self._most - np.log(max(1.0, self._images_with[gram])))
        norms = np.sqrt([sum(value**2 for value in one.values()) for one in weights])
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def bleu(written: Sequence[str], references: Sequence[Sequence[str]], counts_NxR: np.ndarray) -> Measured:
    """BLEU-4 of all texts together, and of each resample of the images: `counts_NxR` as in scores.

    The reference length of a text is that of its image's reference which is nearest to it in length.
    """
    matched, tried, lengths = np.zeros((len(written), ORDERS)), np.zeros((len(written), ORDERS)), []
    for row, (text, own) in enumerate(zip(written, references, strict=True)):
        most = Counter()
        for reference in own:
            most |= grams(reference)
        length = len(words(text))
        tried[row] = [max(0, length - n) for n in range(ORDERS)]
        for gram, count in grams(text).items():
            matched[row, len(gram) - 1] += min(count, most[gram])
        nearest = min((abs(len(words(reference)) - length), len(words(reference))) for reference in own)[1]
        lengths.append((length, nearest))

    def score(counts: np.ndarray) -> np.ndarray:
        precision = (matched.T @ counts + TINY) / (tried.T @ counts + SMALL)
        ours, theirs = np.array(lengths, float).T @ counts
        ratio = (ours + TINY) / (theirs + SMALL)
        brevity = np.exp(np.minimum(0.0, 1.0 - 1.0 / np.maximum(ratio, TINY)))
        return np.exp(np.log(precision).mean(axis=0)) * brevity

    return Measured(float(score(np.ones((len(written), 1)))[0]), score(counts_NxR))
