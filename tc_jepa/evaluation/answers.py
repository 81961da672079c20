"""Whether an answer to a question about an image is right, as VQAv2 counts it."""

from collections.abc import Sequence
import re

ARTICLES = {"a", "an", "the"}
NUMBERS = {
    word: str(value) for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
# The words of VQAv2's evaluation code that get their apostrophe back.
CONTRACTIONS = {
    word.replace("'", ""): word
    for word in (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
        "I'd I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
        "she'd she's should've shouldn't somebody'd somebody'll somebody's someone'd someone'll someone's something'd "
        "something'll that's there'd there're there's they'd they'll they're they've wasn't we've weren't what'll "
        "what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't "
        "would've wouldn't y'all you'd you'll you're you've"
    )
    .lower()
    .split()
}
ENOUGH = 3  # people who must have given an answer for it to be wholly right


def normalised(answer: str) -> str:
    """An answer without articles and punctuation, in lower case, with digits for number words.

    Source: Antol et al. 2015 (arXiv 1505.00468), section 3, and VQAv2's evaluation code.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", answer.lower().replace("\n", " ").replace("\t", " ").strip())
    text = re.sub(r"\.(?!\d)", "", text)  # those of decimals stay
    text = re.sub(r"[;/\[\]\"{}()=+\\_\-><@`,?!]", " ", text)
    found = [NUMBERS.get(word, word) for word in text.split() if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in found)


def accuracy(answer: str, answers: Sequence[str]) -> float:
    """How right an answer is, 0-1.

    With one answer of people, whether it is equal. With several, VQAv2's accuracy: the mean over all of them but one of
    min(1, equal ones / 3). Both sides are `normalised`.
    """
    given, known = normalised(answer), [normalised(one) for one in answers]
    if len(known) == 1:
        return float(given == known[0])
    equal = sum(one == given for one in known)
    return sum(min(1.0, (equal - (one == given)) / ENOUGH) for one in known) / len(known)
