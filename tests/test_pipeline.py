"""Batches are a function of seed and step alone: not of workers, processes or where a run was resumed."""

import contextlib
import dataclasses
import functools
import itertools

import numpy as np
import pytest

from tc_jepa.batch import JepaBatch, uncorrupted
from tc_jepa.data import pipeline, transforms
from tc_jepa.data.captions import tokenizer as captions
from tc_jepa.data.inputs.jepa import CropAndCaptions, JepaInputs
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.transforms import Crop
from tc_jepa.errors import UserError
from tc_jepa.masking import Masks, OfficialMasks, RandomMasks
from tests import tiny

TOKENIZER = captions.CaptionTokenizer(captions.scenes_vocabulary_path(), 12)
AUGMENT = CropAndCaptions(Crop(tiny.IMAGE, (0.3, 1.0), (3 / 4, 4 / 3), False), TOKENIZER, 3)
SOURCE = SceneSource(0, "train", 20, 32)
COLOURS = Photometric(0.5, 0.4, 0.4, 0.2, 0.1, 0.2, 0.3, (1.0, 2.0), 0.2)
DRAWN = ("corruption", "images", "context_images")
MASKS = {
    "fixed": tiny.MASKS,
    "official": OfficialMasks(  # groups straddle batches of 6
        tiny.GRID, 2, (0.25, 0.4), (0.75, 1.5), (0.85, 1.0), (1.0, 1.0), context_tokens=5, min_context=1, group_size=4
    ),
    "random": RandomMasks(tiny.GRID, 1, (0.4, 0.6), context_tokens=8, min_context=4),
}


def batches(start=0, count=4, workers=0, seed=0, kind="fixed", shuffle_captions=False, **process):
    inputs = JepaInputs(AUGMENT, MASKS[kind], shuffle_captions)
    dataset = pipeline.batches(SOURCE, inputs, batch_size=6, seed=seed, **process)
    with contextlib.closing(pipeline.iterate(dataset, start=start, workers=workers)) as iterator:
        return [JepaBatch(*(np.array(x) for x in batch)) for batch in itertools.islice(iterator, count)]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        for name, x, y in zip(JepaBatch._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


@functools.cache
def eight(kind="fixed"):
    return batches(count=8, kind=kind)


@pytest.mark.parametrize(("workers", "kind"), [(1, "fixed"), (2, "fixed"), (2, "official")])
def test_workers_change_nothing(workers, kind):
    assert_equal(batches(count=4, workers=workers, kind=kind), eight(kind)[:4])


@pytest.mark.parametrize("kind", MASKS)
def test_a_resumed_stream_goes_on_where_it_stopped(kind):
    assert_equal(batches(start=5, count=3, kind=kind), eight(kind)[5:])


def test_shuffled_captions_are_a_neighbours_and_nothing_else_changes():
    for one, other in zip(eight(), batches(count=8, shuffle_captions=True), strict=True):
        for name, x, y in zip(JepaBatch._fields, one, other, strict=True):
            turned = name in ("caption_words", "word_valid", "caption_valid")
            np.testing.assert_array_equal(np.roll(x, 1, axis=0) if turned else x, y, err_msg=name)
        assert not np.array_equal(one.caption_words, other.caption_words)


def test_noise_swaps_captions_and_drops_words_at_its_rate_and_resumes():
    """At rate 1 every image has another's captions, of which the ends of sentences are left."""
    inputs = functools.partial(JepaInputs, AUGMENT, tiny.MASKS, noise_seed=4)

    def noisy(rate, start=0, count=4, size=6):
        dataset = pipeline.batches(SOURCE, inputs(noise=rate), batch_size=size, seed=0)
        with contextlib.closing(pipeline.iterate(dataset, start=start, workers=0)) as iterator:
            return [JepaBatch(*(np.array(x) for x in batch)) for batch in itertools.islice(iterator, count)]

    for clean, batch in zip(eight(), noisy(1.0), strict=False):
        np.testing.assert_array_equal(batch.images, clean.images)
        np.testing.assert_array_equal(batch.target_indices, clean.target_indices)
        for i in range(6):
            same = [np.array_equal(batch.caption_words[i], words) for words in clean.caption_words]
            assert any(same) and not same[i]
        assert (batch.word_valid.sum(axis=-1) == batch.caption_valid).all()
        assert (batch.caption_words[batch.word_valid] == captions.EOS).all()
    clean, batch = (pipeline.batches(SOURCE, inputs(noise=rate), batch_size=200, seed=0)[0] for rate in (0.0, 0.25))
    swapped = [not np.array_equal(x, y) for x, y in zip(batch.caption_words, clean.caption_words, strict=True)]
    assert 0.15 < np.mean(swapped) < 0.35
    kept, whole = batch.word_valid[~np.array(swapped)], clean.word_valid[~np.array(swapped)]
    inner = whole & (whole.cumsum(axis=-1) < whole.sum(axis=-1, keepdims=True))
    assert not (kept & ~whole).any() and 0.2 < 1 - kept[inner].mean() < 0.3
    assert_equal(noisy(0.5, start=2, count=2), noisy(0.5)[2:])
    with pytest.raises(UserError) as error:
        inputs(noise=0.5).batched(pipeline.grain.MapDataset.source([clean._replace(images=clean.images[:1])]), 1, 1)[0]
    assert error.value.about == "captions.noise"


@pytest.mark.parametrize("kind", MASKS)
def test_processes_share_out_the_single_processs_batch(kind):
    parts = [batches(count=4, kind=kind, process_index=i, process_count=2) for i in range(2)]
    for whole, one, other in zip(eight(kind), *parts, strict=False):
        for name, x, a, b in zip(JepaBatch._fields, whole, one, other, strict=True):
            np.testing.assert_array_equal(x[0::2], a, err_msg=name)
            np.testing.assert_array_equal(x[1::2], b, err_msg=name)


@pytest.mark.parametrize("kind", ["fixed", "official"])
def test_cut_arrays_end_with_the_longest_ones_of_their_batch(kind):
    inputs = JepaInputs(AUGMENT, MASKS[kind], length_multiple=2)
    for step, whole in enumerate(eight(kind)[:4]):
        cut = pipeline.batches(SOURCE, inputs, batch_size=6, seed=0)[step]
        for name in ("context", "target"):
            valid, cut_valid = getattr(whole, f"{name}_valid"), getattr(cut, f"{name}_valid")
            longest, length = valid.sum(axis=-1).max(), cut_valid.shape[-1]
            assert length == min(longest + longest % 2, valid.shape[-1])
            np.testing.assert_array_equal(valid[..., :length], cut_valid)
            indices = getattr(whole, f"{name}_indices")[..., :length]
            np.testing.assert_array_equal(indices, getattr(cut, f"{name}_indices"))


def test_processes_cut_alike_or_not_at_all():
    def part(masks, process_index, process_count=2, batch_size=8):
        inputs = JepaInputs(AUGMENT, masks, length_multiple=1)
        process = {"process_index": process_index, "process_count": process_count}
        return pipeline.batches(SOURCE, inputs, batch_size=batch_size, seed=0, **process)

    for step in range(6):
        one, other = (part(MASKS["official"], index)[step] for index in range(2))
        assert one.context_valid.shape == other.context_valid.shape
        assert one.target_valid.shape == other.target_valid.shape
    for refused in ({"masks": MASKS["fixed"]}, {"batch_size": 6}, {"process_count": 8, "batch_size": 8}):
        with pytest.raises(UserError) as caught:
            part(**({"masks": MASKS["official"], "process_index": 0} | refused))
        assert caught.value.about == "masking.length_multiple"


def test_every_epoch_shows_every_image_once_but_cropped_anew():
    dataset = pipeline.batches(SOURCE, JepaInputs(AUGMENT, tiny.MASKS), batch_size=20, seed=0)
    first, second = dataset[0], dataset[1]
    originals = {str(SOURCE[i].captions) for i in range(20)}
    assert len(originals) == 20
    # The captions of a row come from one image; which image, its sentences tell.
    seen = []
    for batch in (first, second):
        found = set()
        for ids in batch.caption_words:
            sentence = TOKENIZER.decode(ids[0])
            found |= {i for i in range(20) if any(c.startswith(sentence) or sentence == c for c in SOURCE[i].captions)}
        seen.append(found)
    assert len(seen[0]) >= 19 and len(seen[1]) >= 19
    assert not np.array_equal(first.images, second.images)


def test_another_seed_is_another_stream():
    other = batches(count=1, seed=1)[0]
    assert not np.array_equal(other.images, eight()[0].images)
    assert not np.array_equal(other.target_indices, eight()[0].target_indices)


def test_only_the_first_candidates_are_sampled_and_nothing_else_changes():
    example, few = SOURCE[0], dataclasses.replace(AUGMENT, candidates=2)
    first = {TOKENIZER.encode([caption])[0].tobytes() for caption in example.captions[:2]}
    for seed in range(5):
        limited, all_of_them = (augment.random_map(example, np.random.default_rng(seed)) for augment in (few, AUGMENT))
        assert limited["caption_valid"].tolist() == [True, True, False]
        assert {ids.tobytes() for ids in limited["caption_words"][:2]} == first
        assert all_of_them["caption_valid"].all()
        np.testing.assert_array_equal(limited["images"], all_of_them["images"])


def test_the_kind_of_masks_changes_neither_images_nor_captions():
    for kind in MASKS:
        for one, other in zip(eight(), eight(kind), strict=True):
            for name in ("images", "caption_words", "word_valid", "caption_valid"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_reader_there_are_no_captions_and_nothing_else_changes(workers):
    dataset = pipeline.batches(
        SOURCE, JepaInputs(dataclasses.replace(AUGMENT, reader=None), tiny.MASKS), batch_size=6, seed=0
    )
    with contextlib.closing(pipeline.iterate(dataset, start=0, workers=workers)) as iterator:
        for batch, read in zip(itertools.islice(iterator, 3), eight()[:3], strict=True):
            assert batch.caption_words.shape == batch.word_valid.shape == (6, 0, 0) and batch.caption_valid.shape == (
                6,
                0,
            )
            for name in set(JepaBatch._fields) - {"caption_words", "word_valid", "caption_valid"}:
                np.testing.assert_array_equal(getattr(batch, name), getattr(read, name), err_msg=name)


def test_corruption_has_draws_of_its_own_and_is_a_function_of_the_position():
    inputs = JepaInputs(AUGMENT, tiny.MASKS, corruption=COLOURS)

    def corrupted(start, count, **process):
        dataset = pipeline.batches(SOURCE, inputs, batch_size=6, seed=0, **process)
        with contextlib.closing(pipeline.iterate(dataset, start=start, workers=0)) as iterator:
            return [JepaBatch(*(np.array(x) for x in batch)) for batch in itertools.islice(iterator, count)]

    whole = corrupted(0, 4)
    without = [batch._replace(**uncorrupted(6)) for batch in whole]
    assert_equal(without, eight()[:4])  # whose crops, captions and masks are drawn alike
    assert_equal(corrupted(2, 2), whole[2:])
    assert_equal(corrupted(1, 1, process_index=1, process_count=2), [JepaBatch(*(x[1::2] for x in whole[1]))])
    done, images, context = (np.concatenate([getattr(batch, name) for batch in whole]) for name in DRAWN)
    assert done.shape == (24, 7) and done.dtype == np.float32 and len(np.unique(done, axis=0)) > 12
    assert [np.array_equal(*pair) for pair in zip(images, context)] == (done == 0).all(axis=1).tolist()
    examples = pipeline.grain.MapDataset.source(SOURCE)
    drawn = [np.stack([inputs.rows(examples, (1, 2, seed))[i].corruption for i in range(8)]) for seed in (1, 3)]
    assert not np.array_equal(*drawn)
    row = inputs.example(SOURCE[0])
    assert row.context_images.shape == row.images.shape and row.corruption.shape == (7,)


class Positions:
    """A mask sampler that writes down where it was asked."""

    context_tokens = target_tokens = target_blocks = 1

    def draw_at(self, seed, index):
        block = np.array([[index]], np.int32)
        return Masks(block[0], block[0] >= 0, block, block >= 0, np.int32(seed % 1000))


def test_masks_are_drawn_at_the_position_in_the_global_stream():
    for process in range(2):
        dataset = pipeline.batches(
            SOURCE, JepaInputs(AUGMENT, Positions()), batch_size=6, seed=0, process_index=process, process_count=2
        )
        with contextlib.closing(pipeline.iterate(dataset, start=5, workers=0)) as iterator:
            batch = next(iterator)
        np.testing.assert_array_equal(batch.context_indices[:, 0], np.arange(30 + process, 36, 2))
        assert (batch.context_dropped == np.random.SeedSequence(0).generate_state(3)[2] % 1000).all()


def test_rows_are_what_the_model_expects():
    batch = eight()[0]
    assert batch.images.shape == (6, tiny.IMAGE, tiny.IMAGE, 3) and batch.images.dtype == np.uint8
    assert batch.images.std() > 10  # no black images
    assert batch.caption_words.shape == batch.word_valid.shape == (6, 3, 12)
    assert batch.caption_valid.all()  # a scene has more than 8 candidates
    assert batch.context_dropped.shape == (6,) and batch.context_dropped.dtype == np.int32
    assert batch.context_indices.shape == (6, 12) and batch.target_indices.shape[:2] == (6, 2)
    assert all(len({tuple(ids) for ids in row}) == 3 for row in batch.caption_words)  # without replacement


def test_crop_is_part_of_the_image_and_full_scale_is_all_of_it():
    ramp = np.repeat(np.arange(0, 120, dtype=np.uint8)[None, :, None], 120, axis=0).repeat(3, axis=2)
    rng = np.random.default_rng(0)
    spans = []
    for _ in range(200):
        crop = transforms.Crop(30, (0.3, 0.4), (1.0, 1.0), flip=False).cut(ramp, rng)
        assert crop.shape == (30, 30, 3)
        spans.append((int(crop[0, -1, 0]) - int(crop[0, 0, 0])) / 120)
    assert 0.3**0.5 - 0.1 < np.mean(spans) < 0.4**0.5 + 0.05
    whole = transforms.Crop(120, (1.0, 1.0), (1.0, 1.0), flip=False).cut(ramp, rng)
    np.testing.assert_array_equal(whole, ramp)


def test_a_crop_that_never_fits_is_centred():
    thin = np.zeros((4, 100, 3), np.uint8)
    thin[:, 49:51] = 255
    crop = transforms.Crop(8, (1.0, 1.0), (1.0, 1.0), flip=False).cut(thin, np.random.default_rng(0))
    assert crop[:, 3:5].min() > 200 and crop[:, 0].max() == 0


def test_evaluation_sees_the_centre_at_the_short_sides_scale():
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = 200
    out = transforms.resize_and_centre_crop(image, 20)
    assert out.shape == (20, 20, 3) and out.min() == 200
