"""Candidates: the captions of an image that training samples from, made from the texts that come with the image.

A caption is one candidate; so is each sentence of a description, such as the long answer of a captioning model.

The splitter is our own, because candidates are part of an experiment and must not change with a library's version:
pysbd and syntok have not been maintained since 2021 and 2022, and sentencex (1.0.32, maintained) panics on a line
separator after an initial and takes time quadratic in opening quotes; text from the web has both.
"""

import collections
from collections.abc import Iterable, Iterator
import re
from typing import NamedTuple

# A stop may be followed by closing quotes or brackets. Full stops of other scripts need no space after them.
# Possessive, and only at the first of a run, so that the time is linear in the text.
_STOP = re.compile(r"(?:(?<![.!?…])[.!?…]++[\"'”’»)\]]*+(?=\s)|[。！？｡．।॥؟۔]+[\"'”’»)\]」』】]*)\s*")
_WORD_BEFORE = re.compile(r"[\w.'’]*$")
_WORD_AFTER = re.compile(r"[\"'“‘«(\[]*([^\W\d_]+)(?![\w.])")
# A stop inside these ends no sentence: 'He says "Stop. Now." and leaves.' Bounded, in case a quote is unpaired.
_ENCLOSED = re.compile(r"(?<!\w)\"(?=\S)[^\"]{1,200}(?<=\S)\"|“[^”]{1,200}”|«[^»]{1,200}»|\([^()]{1,200}\)")
_LIST_MARKER = re.compile(r"\A(?:[-*•‣◦–—]|\(?\d{1,3}[.)])(?:\s+|\Z)")
_LONGEST_WORD = 20  # characters looked at before a stop, which bounds the time on text without spaces

ABBREVIATIONS = frozenset(
    # titles and places
    "mr mrs ms dr prof st mt ft rev hon gen col capt lt sgt sr jr gov sen rep pres ave blvd rd "
    # in running text
    "vs cf approx ca etc al eg ie viz incl excl est min max dept no nos fig figs vol vols pp ed eds "
    # companies
    "inc ltd co corp bros "
    # months
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
# Words that often begin a sentence, rarely a name. After an abbreviation only these do: "the U.S. Army", "the U.S. He".
STARTERS = frozenset(
    """
    a above across after all also although an and another around as at atop because before behind below beneath
    beside between beyond both but by despite each even every few for from further he her here his however i if
    in inside it its many meanwhile most near next no on one other others our outside over overall several she
    similarly since so some such that the their them then there these they this those three through to two under
    underneath upon we what when where while with within you your
    """.split()
)


class Candidates(NamedTuple):
    """The candidates of an image, and how many texts were left out as blank or as duplicates."""

    texts: tuple[str, ...]
    blank: int
    duplicates: int


def candidates(captions: Iterable[str], descriptions: Iterable[str] = ()) -> Candidates:
    """The captions, then the sentences of the descriptions, with single spaces, without blanks and duplicates.

    Two texts are duplicates if they differ only in case, spaces and final punctuation, as a raw caption and a model's
    sentence often do: training draws without replacement, and would draw the same words twice. The first is kept.
    """
    found: dict[str, str] = {}
    blank = duplicates = 0
    sentences = (sentence for text in descriptions for sentence in split_sentences(text) or ("",))
    for text in (*captions, *sentences):
        text = " ".join(text.split())
        key = text.casefold().rstrip(" .!?…。！？")
        if not text:
            blank += 1
        elif key in found:
            duplicates += 1
        else:
            found[key] = text
    return Candidates(tuple(found.values()), blank, duplicates)


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in order, without list markers and without parts that have no letter or digit.

    The end of a line ends a sentence, because captioning models write lists and paragraphs but do not wrap lines. So
    does a stop (. ! ? or an ellipsis) before white space, unless the next word is in lower case (in a line that has
    capitals), the stop lies inside quotes or parentheses, or it belongs to an abbreviation or initial. In doubt,
    sentences are not split: half a sentence is a worse caption than two. Abbreviations are English.
    """
    pieces = (piece for line in text.splitlines() for piece in _split_line(line))
    stripped = (_LIST_MARKER.sub("", piece.strip()) for piece in pieces)
    return [piece for piece in stripped if any(map(str.isalnum, piece))]


def _split_line(line: str) -> Iterator[str]:
    enclosed = collections.deque(match.span() for match in _ENCLOSED.finditer(line))
    has_capitals = any(map(str.isupper, line))
    start = 0
    for stop in _STOP.finditer(line):
        end = stop.start() + len(stop[0].rstrip())
        while enclosed and enclosed[0][1] <= end:
            enclosed.popleft()
        within = enclosed and enclosed[0][0] < end
        if not within and _ends_sentence(line, start, stop, has_capitals):
            yield line[start : stop.end()]
            start = stop.end()
    yield line[start:]


def _ends_sentence(line: str, start: int, stop: re.Match, has_capitals: bool) -> bool:
    """Whether the stop ends the sentence that starts at `start`."""
    following = line[stop.end() : stop.end() + 1]
    if stop[0][0] not in ".!?…" or not following:
        return True
    if following.islower() and has_capitals:
        return False
    if not stop[0].startswith(".") or stop[0].startswith(".."):
        return True
    word = _WORD_BEFORE.search(line, max(start, stop.start() - _LONGEST_WORD), stop.start())[0].strip("'’")
    if word.isdigit() and _LIST_MARKER.match(line[start : stop.end()].lstrip()):
        return False  # "2. A cat."
    initial = len(word) == 1 and word.isalpha()
    if not initial and "." not in word.strip(".") and word.casefold() not in ABBREVIATIONS:
        return True
    after = _WORD_AFTER.match(line, stop.end())
    return after is not None and after[1][0].isupper() and after[1].casefold() in STARTERS
