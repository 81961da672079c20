"""Scenes through windows: sharp, the same scene, with nothing said or labelled that is not seen in the crop."""

import contextlib
import hashlib
import itertools
import re

import cv2
import numpy as np
import pytest

from tc_jepa.data import pipeline
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.inputs.jepa import CropAndCaptions, JepaInputs
from tc_jepa.data.inputs.labels import CropAndLabels
from tc_jepa.data.scenes import window
from tc_jepa.data.scenes.drawing import draw, draw_instances
from tc_jepa.data.scenes.scene import BACKGROUNDS, COLOURS, Frame, LEVELS, NUMBERS, SHAPES
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Example, Labelled
from tc_jepa.data.transforms import Box, Crop
from tests import tiny
from tests.test_scenes import is_true, kind

SOURCE = SceneSource(3, "train", 400, 60, "spacious")
CROP = Crop(60, (0.4, 1.0), (3 / 4, 4 / 3), False)
LARGE = 720  # pixels of a drawing from which a test cuts what a window shows
# What scenes were before there were windows. Other releases of OpenCV may draw other pixels, never other words.
CONTENT = {
    "standard": "ac9d38e84dd9c854cf54420dc7290da40328024f82d91598bbe120e6d4668213",
    "hard": "6ed6706222513074ef5d1fb35d512eb338039f0d5af2ff2ef5b0089489f2f66c",
}


@pytest.mark.parametrize("level", CONTENT)
def test_older_levels_keep_their_pictures_captions_labels_and_masks(level):
    found = hashlib.sha256()
    for seed, size in ((0, 60), (5, 48)):
        source = SceneSource(seed, "train", 30, size, level)
        for i in range(30):
            found.update(source[i].image.tobytes() + "\n".join(source[i].captions).encode())
            for label in source.labels(i).values():
                found.update(np.asarray(label, np.int64).tobytes())
            found.update(source.mask(i).tobytes())
    assert found.hexdigest() == CONTENT[level]


def boxes(count: int, seed: int = 0) -> list[Box]:
    """Windows as training draws them."""
    rng = np.random.default_rng(seed)
    return [CROP.draw(window.FINENESS, window.FINENESS, rng) for _ in range(count)]


def cut(picture: np.ndarray, box: Box) -> np.ndarray:
    """What a window shows of a large picture."""
    top, left, height, width = (round(side * len(picture) / window.FINENESS) for side in box)
    return picture[top : top + height, left : left + width]


@pytest.mark.parametrize("index", range(12))
def test_a_window_shows_the_part_of_the_scene_that_it_covers(index):
    (box,) = boxes(1, index)
    part = cut(draw(SOURCE.scene(index), LARGE), box)
    expected = cv2.resize(part, (60, 60), interpolation=cv2.INTER_AREA).astype(float)
    found = SOURCE[index].through(box, 60).image
    assert found.shape == (60, 60, 3) and found.dtype == np.uint8
    # Outlines have the same width in pixels at every size, so the pictures differ there.
    elsewhere = SOURCE[index].through(boxes(1, index + 100)[0], 60).image
    assert np.abs(found - expected).mean() < 0.5 * np.abs(elsewhere - expected).mean()


def test_the_whole_is_the_window_that_covers_everything():
    whole = Box(0, 0, window.FINENESS, window.FINENESS)
    for index in range(5):
        example = SOURCE[index]
        np.testing.assert_array_equal(example.through(whole, 60).image, example.image)
        assert example.through(whole, 60).captions == example.captions
        np.testing.assert_equal(example.labels, SOURCE.labels(index))


def seen(index: int, box: Box):
    """(objects by their number with the middle of what is seen of them, shares of all), from a large drawing."""
    scene, size = SOURCE.scene(index), LARGE
    part = cut(draw_instances(scene, size), box)
    shares, placed = [], {}
    for i, item in enumerate(scene.objects):
        whole = (draw_instances(scene._replace(objects=(item,)), size) > 0).sum()
        rows, columns = np.nonzero(part == i + 1)
        shares.append(len(rows) / whole)
        if len(rows):
            x, y = (columns.mean() + 0.5) / part.shape[1], (rows.mean() + 0.5) / part.shape[0]
            placed[i] = item._replace(x=x, y=y)
    return placed, shares


def covers(index: int, box: Box, objects) -> list[tuple]:
    """(front, back) objects of which the front one hides part of the other in the window."""
    scene, found = SOURCE.scene(index), []
    outlines = {i: cut(draw_instances(scene._replace(objects=(scene.objects[i],)), LARGE), box) > 0 for i in objects}
    for back, front in itertools.combinations(sorted(objects), 2):
        if (outlines[back] & outlines[front]).sum() > 0.05 * outlines[back].sum():
            found.append((objects[front], objects[back]))
    return found


def test_every_sentence_is_true_of_what_the_window_shows():
    judged, false_of_the_whole, incomplete = 0, 0, 0
    for index, box in enumerate(boxes(150)):
        placed, shares = seen(index, box)
        if any(abs(share - edge) < 0.1 for share in shares for edge in (window.MENTIONED, 0.0) if share):
            continue  # too close to call
        captions = SOURCE[index].through(box, 60).captions
        mentioned = {i: item for i, item in placed.items() if shares[i] > window.MENTIONED}
        scene = SOURCE.scene(index)._replace(objects=tuple(mentioned.values()))
        fronts = covers(index, box, mentioned)
        for caption in captions:
            assert is_true(caption, scene, in_front=lambda a, b, found=fronts: (a, b) in found), (index, box, caption)
            false_of_the_whole += not is_true(caption, SOURCE.scene(index))
        judged += 1
        if len(placed) > len(mentioned):
            incomplete += 1
            assert not any(set(NUMBERS) & set(re.findall(r"\w+", caption)) for caption in captions)
    assert judged > 100 and false_of_the_whole > 50 and incomplete > 5


def test_labels_of_a_window_are_those_of_the_objects_that_are_mentioned():
    empty = 0
    for index, box in enumerate(boxes(100, seed=1)):
        placed, shares = seen(index, box)
        if any(abs(share - window.MENTIONED) < 0.1 for share in shares):
            continue
        mentioned = [item for i, item in placed.items() if shares[i] > window.MENTIONED]
        labels, classes = SOURCE[index].through(box, 60).labels, SOURCE.tasks
        assert {name for name, on in zip(SHAPES, labels["shape"]) if on} == {item.shape for item in mentioned}
        assert {name for name, on in zip(COLOURS, labels["colour"]) if on} == {item.colour for item in mentioned}
        assert classes["count"].classes[labels["count"]] == NUMBERS[len(mentioned)]
        empty += not mentioned
    row = CropAndLabels(CROP, ("count", "shape")).random_map(Labelled(SOURCE)[7], np.random.default_rng(5))
    box = CROP.draw(window.FINENESS, window.FINENESS, np.random.default_rng(5))
    np.testing.assert_equal(row.labels, {k: SOURCE[7].through(box, 60).labels[k] for k in ("count", "shape")})
    np.testing.assert_array_equal(row.images, SOURCE[7].through(box, 60).image)


def test_a_window_without_an_object_has_a_true_caption():
    scene = SOURCE.scene(0)
    level = LEVELS["spacious"]
    lonely = window.DrawnScene(scene._replace(objects=()), level, 60, "seed", Frame(0.1, 0.1, 0.5, 0.5))
    assert [kind(caption) for caption in lonely.captions] == ["scene"] and "background" in lonely.captions[0]
    assert lonely.labels["count"] == 0 and not lonely.labels["shape"].any()


def test_a_resumed_stream_repeats_crops_and_captions():
    reader = CaptionTokenizer(scenes_vocabulary_path(), 20)
    inputs = JepaInputs(CropAndCaptions(Crop(16, (0.5, 1.0), (1.0, 1.0), False), reader, 2), tiny.MASKS)

    def batches(start: int, count: int):
        stream = pipeline.batches(SOURCE, inputs, batch_size=4, seed=1)
        with contextlib.closing(pipeline.iterate(stream, start=start, workers=0)) as iterator:
            return list(itertools.islice(iterator, count))

    for found, expected in zip(batches(2, 2), batches(0, 4)[2:], strict=True):
        for name in ("images", "caption_words", "word_valid", "context_indices"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_crop_of_any_other_image_keeps_its_captions_and_labels():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    example = Example(image, ("a dog on the left",), {"dog": 1})
    seen_part = CROP.seen(example, np.random.default_rng(3))
    assert seen_part[1:] == example[1:]
    np.testing.assert_array_equal(seen_part.image, CROP.cut(image, np.random.default_rng(3)))


def test_objects_are_large_and_have_a_theme():
    scenes = [SOURCE.scene(i) for i in range(400)]
    sizes = [np.bincount(draw_instances(scene, 60).ravel())[1:] / 100 for scene in scenes[:200]]  # in patches of 10 px
    assert np.median(np.concatenate(sizes)) > 3
    pairs = [pair for scene in scenes for pair in itertools.combinations(scene.objects, 2)]
    for name, values in (("shape", SHAPES), ("colour", COLOURS)):
        assert np.mean([getattr(a, name) == getattr(b, name) for a, b in pairs]) > 2 / len(values)
    tied = [BACKGROUNDS.index(s.background.pattern) == COLOURS.index(s.objects[0].colour) % 6 for s in scenes]
    assert np.mean(tied) > 2 / len(BACKGROUNDS)
