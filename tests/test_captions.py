"""The caption tokenizer and the sampling of captions: fixed shapes, honest masks, clear refusals."""

import io
import pickle

import numpy as np
import pytest
import sentencepiece

from tc_jepa.data.captions import tokenizer as captions_lib
from tc_jepa.data.captions.tokenizer import caption_arrays, CaptionTokenizer, sample_captions
from tc_jepa.data.scenes import vocabulary as scenes_vocabulary
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.errors import UserError

PATH = captions_lib.scenes_vocabulary_path()


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer(PATH, words=12)


def test_a_caption_ends_with_eos_and_is_padded_with_zeros(tokenizer):
    ids, valid = tokenizer.encode(["a red star", "the blue ring is left of the green cross"])
    assert ids.shape == valid.shape == (2, 12) and ids.dtype == np.int32 and valid.dtype == bool
    assert ids[0, 3] == 1 and not ids[0, 4:].any()
    np.testing.assert_array_equal(valid.sum(axis=1), [4, 10])
    assert valid[0, :4].all() and (ids[valid] != 0).all()
    assert tokenizer.decode(ids[1]) == "the blue ring is left of the green cross"


def test_a_long_caption_is_cut_and_still_ends_with_eos():
    ids, valid = CaptionTokenizer(PATH, words=4).encode(["a red star near the top left"])
    assert ids[0, -1] == 1 and (ids[0, :-1] > 2).all() and valid.all()
    assert CaptionTokenizer(PATH, words=4).decode(ids[0]) == "a red star"


def test_a_pickled_tokenizer_says_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy.encode(["a blue ring"])[0], tokenizer.encode(["a blue ring"])[0])
    assert copy.vocabulary_size == tokenizer.vocabulary_size > 100


def test_bytes_and_path_give_the_same_vocabulary(tokenizer):
    with open(PATH, "rb") as file:
        from_bytes = CaptionTokenizer(file.read(), words=12)
    np.testing.assert_array_equal(from_bytes.encode(["two shapes"])[0], tokenizer.encode(["two shapes"])[0])


def test_blank_captions_count_as_missing(tokenizer):
    arrays = caption_arrays(["", "a star", " \n"], 3, tokenizer, np.random.default_rng(0))
    np.testing.assert_array_equal(arrays["caption_valid"], [True, False, False])
    assert tokenizer.decode(arrays["caption_words"][0]) == "a star"
    assert not arrays["caption_words"][1:].any() and not arrays["word_valid"][1:].any()
    assert not tokenizer.encode([" \n"])[1].any()


def test_an_image_without_captions_has_none_that_is_valid(tokenizer):
    arrays = caption_arrays([], 2, tokenizer, np.random.default_rng(0))
    assert {name: (value.shape, value.dtype.name) for name, value in arrays.items()} == {
        "caption_words": ((2, 12), "int32"),
        "word_valid": ((2, 12), "bool"),
        "caption_valid": ((2,), "bool"),
    }
    assert not any(value.any() for value in arrays.values())


def test_captions_are_sampled_without_replacement_and_evenly():
    rng, candidates = np.random.default_rng(0), [str(i) for i in range(6)]
    drawn = [sample_captions(candidates, 3, rng) for _ in range(600)]
    assert all(len(set(sample)) == 3 for sample in drawn)
    for position in range(3):  # each candidate comes first, second and third about as often
        assert min(np.unique([sample[position] for sample in drawn], return_counts=True)[1]) > 60
    assert sorted(sample_captions(candidates, 9, rng)) == candidates


def test_sampling_follows_the_generator():
    candidates = [str(i) for i in range(20)]
    first, second, other = (sample_captions(candidates, 8, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_the_scenes_vocabulary_reads_every_scene_caption_and_is_small():
    tokenizer, source = CaptionTokenizer(PATH, words=32), SceneSource(5, "test", 200, 8)
    with open(PATH, "rb") as file:
        assert len(file.read()) < 100_000
    for index in range(len(source)):
        candidates = source[index].captions
        ids, valid = tokenizer.encode(candidates)
        assert not (ids == captions_lib.UNKNOWN).any()
        assert [tokenizer.decode(row) for row in ids] == list(candidates)
        for caption, row in zip(candidates, valid):  # a word is one piece, and so is a comma or a colon
            assert row.sum() == len(caption.split()) + sum(caption.count(mark) for mark in ",:") + 1


def test_the_scenes_vocabulary_spells_other_small_letters(tokenizer):
    ids, _ = tokenizer.encode(["zebra 42"])
    assert captions_lib.UNKNOWN not in ids and tokenizer.decode(ids[0]) == "zebra 42"


def test_training_a_vocabulary_is_reproducible():
    assert scenes_vocabulary.train(scenes=40) == scenes_vocabulary.train(scenes=40)


def test_ids_other_than_those_of_t5_are_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red star", "a blue ring"]),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )  # SentencePiece's own ids: unk 0, bos 1, eos 2, no pad
    path = tmp_path / "other.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"other\.model has pad, eos, unk ids \(-1, 2, 0\).*--pad_id=0"):
        CaptionTokenizer(path, words=8)


@pytest.mark.parametrize("content", [None, b"", b"no model at all"])
def test_a_file_that_is_no_vocabulary_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "v.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"vocabulary .*v\.model .*SentencePiece model") as refusal:
        CaptionTokenizer(str(path), words=8)
    assert "\n" not in str(refusal.value)


def test_a_caption_needs_room_for_a_word():
    with pytest.raises(UserError, match="captions.words=1"):
        CaptionTokenizer(PATH, words=1)
