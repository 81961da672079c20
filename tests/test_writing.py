"""Captions and answers: scores are those of their definitions, a beam search finds the best text, nothing leaks."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tc_jepa.data.captions.tokenizer import CaptionTokenizer, EOS, PAD, scenes_vocabulary_path, UNKNOWN
from tc_jepa.data.scenes.questions import questions
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Question
from tc_jepa.errors import UserError
from tc_jepa.evaluation import caption_scores, decoder, writing
from tc_jepa.evaluation.answers import accuracy, normalised
from tc_jepa.evaluation.decoder import Decoder, Text
from tc_jepa.evaluation.examples import Examples
from tc_jepa.evaluation.rows import Rows
from tc_jepa.evaluation.task import DecoderSize, TaskInputs, Writing
from tc_jepa.evaluation.tasks import captioning, vqa
from tests import tiny

TOKENIZER = CaptionTokenizer(scenes_vocabulary_path(), 16)
REFERENCES = [
    ["a red star on the left", "one star"],
    ["two blue rings on a dotted background"],
    ["a red ring", "a ring"],
]
WRITTEN = ["a red star on the right", "two blue rings on a dotted background", "a heart"]


# Scores of captions


def test_equal_captions_have_the_highest_cider():
    assert caption_scores.Cider([own[:1] for own in REFERENCES[:2]])([own[0] for own in REFERENCES[:2]]).tolist() == (
        pytest.approx([10.0, 10.0])
    )
    found = caption_scores.Cider(REFERENCES)(WRITTEN)
    assert found[2] == 0.0 < found[0] < found[1]


def test_cider_weighs_words_by_how_few_images_have_them():
    references = [["a red star"], ["a red ring"], ["a blue heart"], ["a green cross"]]
    common, rare, other = ["a red cross"], ["a green star"], references[1:]
    assert caption_scores.Cider(references)(common + [x[0] for x in other])[0] == pytest.approx(
        _unigrams_by_hand("a red cross", "a red star", references)
    )
    assert (
        caption_scores.Cider(references)(rare + [x[0] for x in other])[0]
        > caption_scores.Cider(references)(common + [x[0] for x in other])[0]
    )


def _unigrams_by_hand(text: str, reference: str, references) -> float:
    """CIDEr-D of three words each that share their first two: n-grams of 1 and 2 words match."""
    documents = Counter(gram for own in references for gram in set(caption_scores.grams(own[0])))

    def weight(gram):
        return np.log(len(references)) - np.log(max(1, documents[gram]))

    total = 0.0
    for n in (1, 2):
        ours, theirs = ({g for g in caption_scores.grams(x) if len(g) == n} for x in (text, reference))
        norms = [np.sqrt(sum(weight(g) ** 2 for g in x)) for x in (ours, theirs)]
        total += sum(weight(g) ** 2 for g in ours & theirs) / np.prod(norms)
    return 10.0 * total / 4


# As pycocoevalcap 1.2 scores these, with texts split at spaces.
TOLD = ["a red star and a red star and a red star", WRITTEN[1], "a ring", "the the the cat is on the the"]
OWN = [
    ["a red star on the left", "one red star"],
    REFERENCES[1],
    ["a red ring above a red star", "a ring"],
    ["the cat is on the mat", "a cat"],
]


def test_repeated_words_and_wrong_lengths_count_as_in_pycocoevalcap():
    np.testing.assert_allclose(caption_scores.Cider(OWN)(TOLD), [0.32536802, 10.0, 2.98997242, 2.75200237], rtol=1e-7)
    assert caption_scores.bleu(TOLD, OWN, np.ones((4, 1))).value == pytest.approx(0.47806226, rel=1e-7)


def test_bleu_is_the_product_of_precisions_and_brevity():
    counts = np.ones((2, 1))
    written, references = ["a b c d e", "a b c"], [["a b c d e f"], ["a b x", "a b c d"]]
    precisions = [8 / 8, 6 / 6, 4 / 4, 2 / 2]  # of both together: every n-gram is in a reference
    found = caption_scores.bleu(written, references, counts)
    assert found.value == pytest.approx(np.prod(precisions) ** 0.25 * np.exp(1 - 9 / 8), rel=1e-6)
    assert caption_scores.bleu(["x y z w"], [["a b c d"]], counts[:1]).value < 1e-3
    doubled = caption_scores.bleu(written, references, np.array([[2.0], [0.0]]))
    assert doubled.resampled[0] == pytest.approx(np.exp(1 - 6 / 5), rel=1e-6)


@pytest.mark.slow
def test_scores_are_those_of_pycocoevalcap():
    bleu_scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer")
    cider_scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    source = SceneSource(0, "test", 40, 16)
    references = [list(source[i].captions[1:6]) for i in range(40)]
    written = [source[(i + i % 3) % 40].captions[0] for i in range(40)]
    for scorer, ours in (
        (cider_scorer.CiderScorer(n=4, sigma=6.0), caption_scores.Cider(references)(written)),
        (bleu_scorer.BleuScorer(n=4), None),
    ):
        for text, own in zip(written, references):
            scorer += (text, own)
        if ours is not None:
            mean, each = scorer.compute_score()
            np.testing.assert_allclose(ours, each, rtol=1e-6)
        else:
            whole, _ = scorer.compute_score(option="closest")
            assert caption_scores.bleu(written, references, np.ones((40, 1))).value == pytest.approx(whole[3], rel=1e-6)


# Answers


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Red Star.", "red star"),
        ("Two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("1,000 km", "1000 km"),
        ("3.5", "3.5"),
        ("2.", "2"),
        ("left/right", "left right"),
        ("it's a cat!", "it's cat"),
    ],
)
def test_answers_are_normalised(answer, expected):
    assert normalised(answer) == expected


def test_ten_answers_count_as_in_vqav2():
    ten = ["red"] * 2 + ["blue"] * 8
    # Left out one at a time: two of the ten times one "red" remains, else both do.
    assert accuracy("Red", ten) == pytest.approx((2 * (1 / 3) + 8 * (2 / 3)) / 10)
    assert accuracy("blue", ten) == 1.0
    assert accuracy("green", ten) == 0.0
    assert accuracy("a star", ["star"]) == 1.0 and accuracy("ring", ["star"]) == 0.0


# Questions about scenes


def test_questions_have_the_answers_of_the_scene():
    source, kinds = SceneSource(0, "train", 60, 16, "spacious"), Counter()
    for index in range(60):
        scene = source.scene(index)
        for question in questions(scene):
            kinds[question.kind] += 1
            (answer,) = question.answers
            word = question.text.split()[-1]
            if question.kind == "colour":
                assert [item.colour for item in scene.objects if item.shape == word] == [answer]
            if question.kind == "shape":
                assert [item.shape for item in scene.objects if item.colour == word] == [answer]
            if question.kind == "place":
                (named,) = [item for item in scene.objects if item.shape == word]
                there = [item for item in scene.objects if item.shape == answer]
                side = {"left": lambda a: a.x < named.x, "right": lambda a: a.x > named.x}
                side |= {"above": lambda a: a.y < named.y, "below": lambda a: a.y > named.y}
                assert any(side[question.text.split()[2]](item) for item in there)
    assert kinds.keys() == {"count", "background", "colour", "shape", "place"} and min(kinds.values()) >= 20


# The decoder

MODULE = Decoder(vocabulary_size=6, depth=2, width=8, longest=7)


@jax.jit
def apply(params, ids, patches):
    """Logits of a text of any length, by a decoder of depth 2 and width 8."""
    return MODULE.clone(longest=params["positions"].shape[0]).apply({"params": params}, ids, patches)


def parameters(module=MODULE, patches=3, channels=5):
    return tiny.lively(
        jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), int), jnp.zeros((1, patches, channels)))["params"]
    )


def test_a_word_depends_on_earlier_words_and_on_every_patch():
    params = parameters()
    ids, patches = jnp.array([[2, 3, 4, 5]]), jax.random.normal(jax.random.key(1), (1, 3, 5))
    logits = apply(params, ids, patches)
    changed = apply(params, ids.at[0, 2].set(1), patches)
    np.testing.assert_array_equal(logits[0, :2], changed[0, :2])
    assert not np.allclose(logits[0, 2:], changed[0, 2:])
    for patch in range(3):
        other = apply(params, ids, patches.at[0, patch, 0].add(3.0))
        assert not np.allclose(logits[0, 0], other[0, 0])


def test_the_loss_is_of_answers_alone():
    prompts, lengths = decoder._prompts(TOKENIZER, ["describe", "answer what is red"])
    answers, valid = TOKENIZER.encode(["a star", "a ring"])
    ids, counted = decoder._joined(prompts, lengths, answers, valid)
    for row, (prompt, answer) in enumerate((("describe", "a star"), ("answer what is red", "a ring"))):
        assert TOKENIZER.decode(ids[row][~counted[row]]).strip() == prompt
        assert TOKENIZER.decode(ids[row][counted[row]][:-1]) == answer
        assert ids[row][counted[row]][-1] == EOS
    module = Decoder(TOKENIZER.vocabulary_size, 1, 8, ids.shape[1])
    params = parameters(module)
    patches = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    gradient = jax.grad(lambda x: decoder.loss(x, (ids, np.zeros_like(counted), patches), module))(params)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))
    padded = np.where(ids == PAD, 9, ids)
    expected = decoder.loss(params, (ids, counted, patches), module)
    assert float(decoder.loss(params, (padded, counted, patches), module)) == pytest.approx(float(expected), rel=1e-6)


def beam_by_hand(params, patches, prompt, S, beams):
    """The ids after the prompt of the best of a beam search, which reads every text as a whole, one after another."""
    found = [(0.0, [])]
    for _ in range(S - len(prompt)):
        grown = []
        for score, text in found:
            if text[-1:] == [EOS]:
                grown.append((score, text))
                continue
            ids = np.zeros((1, S), int)
            ids[0, : len(prompt) + len(text)] = [*prompt, *text]
            logits = np.array(apply(params, ids, patches), np.float64)[0, len(prompt) + len(text) - 1]
            logits[PAD] = -np.inf
            logp = logits - np.log(np.exp(logits).sum())
            grown += [(score + logp[word], [*text, word]) for word in range(6) if word != PAD]
        found = sorted(grown, reverse=True)[:beams]
    return max(found, key=lambda one: one[0] / ((5 + len(one[1])) / 6) ** decoder.LENGTH_PENALTY)[1]


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_a_beam_search_finds_what_one_by_hand_finds(beams):
    S, prompts, lengths = 5, np.array([[2, 3, 0, 0, 0], [4, 0, 0, 0, 0]]), np.array([2, 1])
    module = MODULE.clone(longest=S)
    found, expected = [], []
    for seed in range(8):
        params = tiny.lively(parameters(module), seed)
        patches = np.random.default_rng(seed).normal(size=(2, 3, 5)).astype(np.float32)
        ids = np.asarray(decoder.search(params, patches, prompts, lengths, module, beams))
        for row, length in enumerate(lengths):
            assert ids[row, :length].tolist() == prompts[row, :length].tolist()
            found.append([word for word in ids[row, length:].tolist() if word != PAD])
            prompt = prompts[row, :length].tolist()
            expected.append(beam_by_hand(params, patches[row : row + 1], prompt, S, beams))
    assert found == expected
    assert len({len(text) for text in expected}) > 1


def test_a_prompt_that_is_longer_than_any_in_training_is_cut():
    features = np.ones((1, 1, 4), np.float32)
    fitted = decoder.fit(DecoderSize(1, 8, 1), features, [Text(0, "a", "red")], TOKENIZER)
    assert len(fitted.write(features, [0], ["a red star on the left of a blue ring"], beams=2)) == 1


def test_ids_that_no_text_had_are_unknown():
    known = np.array([PAD, EOS, UNKNOWN, 7, 9])
    assert decoder._among(np.array([[9, 7, 8], [1, 0, 99]]), known).tolist() == [[4, 3, UNKNOWN], [EOS, PAD, UNKNOWN]]


class Seen:
    """Images of one patch that says which of four colours a circle has; captions and questions about it."""

    tasks, segmentations, has_questions, colours = {}, {}, True, ("red", "blue", "green", "pink")

    def __len__(self):
        return 40

    def __getitem__(self, index):
        colour = self.colours[index % 4]
        return type(
            "Example", (), {"captions": (f"a {colour} circle on the left", f"a circle that is {colour} and big")}
        )

    def file(self, index):
        return f"test/{index}"

    def questions(self, index):
        return [Question("what colour is the circle", (self.colours[index % 4],), "colour")]


class Mute(Seen):
    """The same without captions and questions."""

    has_questions = False

    def __getitem__(self, index):
        return type("Example", (), {"captions": ()})

    def questions(self, index):
        return []


def inputs_of(train, test, steps=1):
    features = np.eye(4, dtype=np.float32)[np.arange(40) % 4][:, None]
    return TaskInputs(
        {split: {"patches": Rows.of(features)} for split in ("train", "test")},
        Examples(train, np.arange(40)),
        Examples(test, np.arange(40)),
        32,
        writing=Writing(DecoderSize(1, 32, steps), TOKENIZER),
    )


@pytest.mark.parametrize("task", [captioning, vqa])
def test_what_is_written_needs_texts_to_learn_from_and_to_compare_with(task):
    for train, test, split in ((Mute(), Seen(), "train"), (Seen(), Mute(), "test")):
        with pytest.raises(UserError, match=f"no {split} image has one"):
            task.TASK.run(inputs_of(train, test))


def test_a_kind_of_question_with_a_slash_has_a_row_of_its_own():
    class Kinds(Seen):
        def questions(self, index):
            return [super().questions(index)[0]._replace(kind="yes/no")]

    found = vqa.TASK.run(inputs_of(Kinds(), Kinds()))
    assert found.scores.keys() == {"vqa/all", "vqa/yes or no"}


def test_a_decoder_learns_what_features_say_and_chance_and_other_images_do_not():
    inputs = inputs_of(Seen(), Seen(), steps=500)
    answers, captions = vqa.TASK.run(inputs), captioning.TASK.run(inputs)
    assert answers.scores["vqa/colour"].value == answers.scores["vqa/all"].value == 1.0
    assert answers.numbers["other_image/vqa/all"] == 0.0 and answers.constants["chance/vqa/all"] == 0.25
    assert answers.constants["text_only/vqa/colour"] == 0.25
    assert 0.0 < captions.constants["text_only/captioning/cider"] < captions.scores["captioning/cider"].value / 2
    assert captions.scores["captioning/bleu_4"].value > 0.9 > captions.constants["chance/captioning/bleu_4"]
    assert captions.scores["captioning/cider"].value > 2 * captions.numbers["other_image/captioning/cider"]
    assert captions.examples["captioning"][1].startswith("test/1: 'a ") and "blue" in captions.examples["captioning"][1]
    assert answers.examples["vqa"][2] == "test/2: what colour is the circle? green; true: green"
    assert writing.fitted(inputs) is writing.fitted(inputs) is not writing.text_only(inputs)
    other = inputs._replace(features=inputs_of(Seen(), Seen()).features)
    assert writing.text_only(inputs) is writing.text_only(other) and writing.fitted(inputs) is not writing.fitted(other)
    assert writing.captions(inputs)[1] == Text(0, writing.CAPTION, "a circle that is red and big")
