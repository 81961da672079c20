"""From raw captions and long descriptions to candidates."""

import pytest

from tc_jepa.data.captions.candidates import candidates, split_sentences
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path

SENTENCES = {
    "plain": ["A dog runs.", "It is brown."],
    "decimals": ["The bridge is 3.5 km long.", "It is made of steel."],
    "a number at the end": ["She counts to 12.", "He is 7.", "Two boats wait."],
    "numbered things": ["The door of No. 5 is red.", "Fig. 3 hangs beside it, from Jan. 1920."],
    "titles": ["Mr. Smith and Dr. Jones meet at St. Pancras.", "They talk."],
    "initials": ["J. K. Rowling signs a book.", "She smiles."],
    "an initial at the end": ["The sign says plan B.", "The wall is white."],
    "e.g.": ["There are vessels, e.g. a cup, i.e. a mug.", "It is blue."],
    "abbreviations that go on": ["The photo, taken c. 1920, shows approx. 20 people vs. a bear."],
    "abbreviations that may end": [
        "A man in the U.S. Army eats fruit etc.",
        "He sits in the U.S.",
        "It is 5 p.m.",
        "The sun sets.",
    ],
    "question and exclamation": ["Is it a dog?", "No!", "What?!", "It is a cat."],
    "exclamation in a name": ["The logo of Yahoo! is visible."],
    "ellipsis": ["Wait... there is more.", "And so on…", "The end."],
    "quotes": ['The sign says "Stop. Now." and is red.', "“Go!”", 'She shouts "Run!"', "Then silence."],
    "parentheses": ["(The sky is blue.)", "A car (a 1957 model. Rare) stands."],
    "inches": ['A 5" disk.', 'It fits a 3" drive.'],
    "address": ["See www.example.com for more.", "The plate reads ABC.123."],
    "no final stop": ["The room is bright.", "A lamp hangs from the ceiling"],
    "detached stops, as in flickr8k": ["A girl goes into a building .", "A dog barks ."],
    "lower case throughout": ["a dog runs.", "it is brown, e.g. like mr. smith's.", "a cat sits"],
    "lower case among capitals": ["The dog of a.b. smith runs. it is brown."],
    "apostrophes": ["It's the dog's.", "'Yes.'", "The boys' ball."],
}


@pytest.mark.parametrize("sentences", SENTENCES.values(), ids=SENTENCES)
def test_a_paragraph_is_split_into_its_sentences(sentences):
    assert split_sentences(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Objects:\n- a red ball\n* a box\n• 2 lamps\n\nDim. ", ["Objects:", "a red ball", "a box", "2 lamps", "Dim."]),
        ("1. A dog. 2. A cat.\n(3) A bird\n4) 3.5 fish", ["A dog.", "A cat.", "A bird", "3.5 fish"]),
        ("A **bold** dog. *** A-b", ["A **bold** dog.", "*** A-b"]),
        ("一只狗在跑。它是棕色的！真的吗？“是的。”好", ["一只狗在跑。", "它是棕色的！", "真的吗？", "“是的。”", "好"]),
        ("यह एक कुत्ता है। वह दौड़ रहा है।", ["यह एक कुत्ता है।", "वह दौड़ रहा है।"]),
        ("Это собака. Она бежит.", ["Это собака.", "Она бежит."]),
        ("A dog\u2028B.\u00a0The cat", ["A dog", "B.", "The cat"]),
        ("... *** — 。\n\n1.\n", []),
        ("", []),
    ],
    ids=["bullets", "numbers", "markdown", "Chinese", "Hindi", "Russian", "separators", "no words", "empty"],
)  # fmt: skip
def test_lists_and_other_scripts(text, sentences):
    assert split_sentences(text) == sentences


@pytest.mark.parametrize(
    ("piece", "count"),
    [("!?", 0), ('"', 0), ("“a. ", 1), ('"A. B" ', 1), ("(", 0), ("A. ", 1), (".)", 0), ("a", 1), ("Is. ", 100_000)],
)
def test_hostile_text_is_split_in_linear_time(piece, count):
    """In quadratic time this test would not end."""
    assert len(split_sentences(piece * 100_000)) == count


def test_candidates_are_captions_then_sentences_without_blanks_and_duplicates():
    found = candidates(
        ["A dog  .", " ", "Mr. X sits. He waits.", "a DOG"], ["A cat. A dog! It\tis red", "", "A Cat… Why?", "***"]
    )
    assert found.texts == ("A dog .", "Mr. X sits. He waits.", "A cat.", "It is red", "Why?")
    assert (found.blank, found.duplicates) == (3, 3)
    assert candidates(found.texts) == (found.texts, 0, 0)


def test_lengths_are_those_that_the_tokenizer_cuts():
    tokenizer = CaptionTokenizer(scenes_vocabulary_path(), words=6)
    captions = ["a red circle", "a red circle left of a blue square and a green square", "red"]
    lengths = tokenizer.lengths(captions)
    _, valid = tokenizer.encode(captions)
    assert valid.sum(1).tolist() == [min(length, 6) for length in lengths]
    assert lengths[1] == CaptionTokenizer(scenes_vocabulary_path(), words=99).encode(captions)[1].sum(1)[1] > 6
