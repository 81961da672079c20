"""Scenes: reproducible, split-disjoint, labelled as drawn, and captioned with nothing but the truth."""

import colorsys
import pickle
import re

import numpy as np
import pytest

from tc_jepa.data.scenes import captions as scene_captions
from tc_jepa.data.scenes import drawing, layout
from tc_jepa.data.scenes.scene import BACKGROUNDS, COLOURS, NUMBERS, RADII, Scene, SHAPES, TEXTURES
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.errors import UserError

BASE_WORD = {synonym: word for word, synonyms in scene_captions.SYNONYMS.items() for synonym in synonyms}
NAME = rf"(the|an?) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
RELATIONS = {  # what a reader would ask of the two objects' centres and sizes
    rf"{NAME} is (?:to the )?left of {NAME}": lambda a, b: b.x - a.x > abs(b.y - a.y),
    rf"{NAME} is (?:to the )?right of {NAME}": lambda a, b: a.x - b.x > abs(b.y - a.y),
    rf"{NAME} has {NAME} on its right": lambda a, b: b.x - a.x > abs(b.y - a.y),
    rf"{NAME} is (?:above|higher than) {NAME}": lambda a, b: b.y - a.y > abs(b.x - a.x),
    rf"{NAME} is (?:below|lower than) {NAME}": lambda a, b: a.y - b.y > abs(b.x - a.x),
    rf"{NAME} is (?:larger|bigger) than {NAME}": lambda a, b: a.radius > 1.3 * b.radius,
    rf"{NAME} is smaller than {NAME}": lambda a, b: b.radius > 1.3 * a.radius,
}
FRONT = rf"{NAME} (?:is in front of|overlaps|partly covers) {NAME}"
BEHIND = rf"{NAME} is (?:behind|partly hidden by) {NAME}"


@pytest.fixture(scope="module")
def source():
    return SceneSource(seed=3, split="train", count=300, size=64)


def box(item, size=64):
    """Left, top, right and bottom of an object in pixels, hidden parts included."""
    outer = drawing.contours(item, size)[0] / 2**drawing.SHIFT + 0.5
    return np.array([*outer.min(axis=0), *outer.max(axis=0)])


def silhouette(item):
    """Where one object alone would be seen, bool [64, 64]."""
    return drawing.draw_mask(Scene(None, (item,), ()), 64) > 0


def test_a_scene_depends_on_seed_split_and_index_alone(source):
    source[7]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(source[5].image, again[5].image)
    assert source[5].captions == again[5].captions
    others = [SceneSource(seed, split, 300, 64) for seed, split in ((4, "train"), (3, "val"), (3, "test"))]
    images = [source[5].image, source[6].image, *(other[5].image for other in others)]
    assert len({image.tobytes() for image in images}) == len(images)


def test_splits_share_no_scene():
    drawn = [{SceneSource(0, split, 150, 16).scene(i) for i in range(150)} for split in ("train", "val", "test")]
    assert len(set.union(*drawn)) == 3 * 150


@pytest.mark.parametrize("index", range(6))
def test_every_size_shows_the_same_scene(source, index):
    larger = SceneSource(3, "train", 300, 256)
    shrunk = larger[index].image.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - source[index].image).mean() < 8
    assert larger[index].captions == source[index].captions
    assert larger.scene(index) == source.scene(index)
    for item in source.scene(index).objects:
        np.testing.assert_allclose(box(item, 256), 4 * box(item, 64), atol=0.1)


def test_everything_occurs_about_equally_often():
    source = SceneSource(0, "val", 600, 16)
    labels = [source.labels(i) for i in range(len(source))]
    shown = [source.scene(i) for i in range(len(source))]
    assert np.bincount([row["count"] for row in labels], minlength=5).min() > 80
    assert np.bincount([row["background"] for row in labels], minlength=len(BACKGROUNDS)).min() > 60
    for task in ("shape", "colour"):
        share = np.mean([row[task] for row in labels], axis=0)
        assert share.min() > 0.2 and share.max() < 0.45
    objects = [item for scene in shown for item in scene.objects]
    assert {(item.size, item.texture) for item in objects} == {(s, t) for s in RADII for t in TEXTURES}
    assert 0.2 < np.mean([bool(scene.covers) for scene in shown]) < 0.7


def test_labels_are_those_of_the_objects(source):
    for i in range(len(source)):
        objects, labels = source.scene(i).objects, source.labels(i)
        classes = {name: task.classes for name, task in source.tasks.items()}
        picked = {name: {c for c, on in zip(classes[name], labels[name]) if on} for name in ("shape", "colour", "pair")}
        assert picked["shape"] == {item.shape for item in objects}
        assert picked["colour"] == {item.colour for item in objects}
        assert picked["pair"] == {f"{item.colour} {item.shape}" for item in objects}
        assert classes["count"][labels["count"]] == NUMBERS[len(objects)]
        assert classes["background"][labels["background"]] == source.scene(i).background.pattern


def test_every_object_can_be_seen(source):
    for i in range(len(source)):
        objects = source.scene(i).objects
        areas = [silhouette(item) for item in objects]
        for j, own in enumerate(areas):
            hidden = np.any([own & front for front in areas[j + 1 :]], axis=0)
            assert np.sum(own & ~hidden) >= 0.55 * own.sum()
        assert (source.mask(i)[areas[-1]] == 1 + SHAPES.index(objects[-1].shape)).all()  # the last stands in front
        shapes = {1 + SHAPES.index(item.shape) for item in objects}
        assert set(np.unique(source.mask(i))) == shapes | {0}


def test_objects_lie_within_the_image_and_fill_their_outlines(source):
    for i in range(100):
        for item in source.scene(i).objects:
            assert box(item).min() >= 0 and box(item).max() <= 64
            rows, columns = np.nonzero(silhouette(item))
            found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose(box(item), found, atol=1.6)


def test_objects_have_the_colour_they_are_named_after(source):
    hues = np.array([layout.HSV[name][0] for name in COLOURS])
    for i in range(100):
        scene = source.scene(i)
        front = scene.objects[-1]  # nothing hides it
        pixels = source[i].image[silhouette(front)]
        hue, saturation, _ = colorsys.rgb_to_hsv(*np.median(pixels, axis=0) / 255)
        distance = np.abs((360 * hue - hues + 180) % 360 - 180)
        assert COLOURS[distance.argmin()] == front.colour and saturation > 0.3


def test_stripes_are_seen_on_striped_objects_only(source):
    for i in range(100):
        front = source.scene(i).objects[-1]
        inner = silhouette(front._replace(radius=0.75 * front.radius)) & silhouette(front)
        brightness = source[i].image.max(axis=2)[inner].astype(float)
        dark = np.mean(brightness < 0.55 * brightness.max())
        assert dark > 0.25 if front.texture == "striped" else dark < 0.1, (i, front, dark)


def test_there_are_more_than_eight_different_sentences_of_all_three_kinds(source):
    for i in range(len(source)):
        captions = source[i].captions
        assert len(set(captions)) == len(captions) > 8
        kinds = {kind(caption) for caption in captions}
        assert kinds >= {"object", "scene"} and kinds <= {"object", "scene", "relation"}
    said = {caption for i in range(len(source)) for caption in source[i].captions}
    assert len(said) > 1500
    for words in ("left of", "is above", "in front of", "bigger than", "from left to right", "large and", "an orange"):
        assert any(words in caption for caption in said), words


def test_every_sentence_is_true(source):
    for i in range(len(source)):
        for caption in source[i].captions:
            assert is_true(caption, source.scene(i)), f"scene {i}: {caption}"


def test_a_false_sentence_would_be_noticed():
    """The judge of the test above finds most sentences of one scene false of another."""
    source = SceneSource(9, "test", 60, 16)
    verdicts = [is_true(caption, source.scene(i + 1)) for i in range(59) for caption in source[i].captions]
    assert np.mean(verdicts) < 0.2


def test_hard_scenes_are_crowded_covered_and_truly_captioned():
    source = SceneSource(3, "test", 60, 64, "hard")
    counts = [len(source.scene(i).objects) for i in range(60)]
    assert set(counts) <= set(range(4, 9)) and np.mean(counts) > 6
    assert np.mean([bool(source.scene(i).covers) for i in range(60)]) > 0.9
    for i in range(60):
        captions = source[i].captions
        assert 12 <= len(captions) <= 28
        assert sum(kind(caption) == "relation" for caption in captions) <= scene_captions.MOST_RELATIONS
        for caption in captions:
            assert is_true(caption, source.scene(i)), f"scene {i}: {caption}"
        labels = source.labels(i)
        assert source.tasks["count"].classes[labels["count"]] == NUMBERS[counts[i]]
    assert len(source.tasks["count"].classes) == 8
    with pytest.raises(UserError, match="'harder'.*standard, hard"):
        SceneSource(3, "test", 60, 64, "harder")


@pytest.mark.parametrize("arguments", [(0, "training", 10, 64), (0, "train", 0, 64), (0, "train", 10, 0)])
def test_impossible_sources_are_refused(arguments):
    with pytest.raises(UserError, match="scenes"):
        SceneSource(*arguments)


@pytest.mark.parametrize("index", [-1, 300])
def test_there_is_no_scene_outside_the_split(source, index):
    with pytest.raises(IndexError):
        source[index]


def in_plain_words(caption):
    return " ".join(BASE_WORD.get(word, word) for word in re.findall(r"\w+", caption))


def kind(caption):
    words = in_plain_words(caption)
    if any(re.fullmatch(pattern, words) for pattern in (*RELATIONS, FRONT, BEHIND)):
        return "relation"
    return "scene" if re.search(rf"background|from left to right|\b(?:{'|'.join(NUMBERS)})\b", words) else "object"


def is_true(caption, scene, in_front=None):
    """`in_front` judges whether one object hides part of another; None: by the silhouettes in the whole scene."""
    words = in_plain_words(caption)
    if kind(caption) == "relation":
        return relation_holds(words, scene, in_front)
    return {"object": object_is_there, "scene": scene_is_so}[kind(caption)](words, scene)


def relation_holds(words, scene, in_front=None):
    def meant(article, colour, shape):
        items = [item for item in scene.objects if (item.colour, item.shape) == (colour, shape)]
        return items if article != "the" or len(items) == 1 else []

    def overlaps(a, b):
        overlap = np.sum(silhouette(a) & silhouette(b))
        return scene.objects.index(a) > scene.objects.index(b) and overlap > 0.08 * silhouette(b).sum()

    in_front = in_front or overlaps
    judges = RELATIONS | {FRONT: in_front, BEHIND: lambda a, b: in_front(b, a)}
    for pattern, holds in judges.items():
        if match := re.fullmatch(pattern, words):
            return any(holds(a, b) for a in meant(*match.groups()[:3]) for b in meant(*match.groups()[3:]))


def object_is_there(words, scene):
    named = set(words.split())
    attributes = named & {*SHAPES, *COLOURS, *RADII, *TEXTURES}
    return any(
        attributes <= set(item[:4])
        and (not named & {"left"} or item.x < 0.4)
        and (not named & {"right"} or item.x > 0.6)
        and (not named & {"top", "upper"} or item.y < 0.4)
        and (not named & {"bottom", "lower"} or item.y > 0.6)
        and (not named & {"middle", "centre"} or max(abs(item.x - 0.5), abs(item.y - 0.5)) < 0.15)
        for item in scene.objects
    )


def scene_is_so(words, scene):
    objects, said = scene.objects, words.split()
    numbers = [NUMBERS.index(word) for word in said if word in NUMBERS]
    if numbers and numbers[0] != len(objects):
        return False
    if len(numbers) == 3:  # "five shapes, two large and three small"
        large = sum(item.size == "large" for item in objects)
        return numbers[1:] == [large, len(objects) - large]
    if "background" in said and not set(said) & set(BACKGROUNDS) == {scene.background.pattern}:
        return False
    shapes, colours = [w for w in said if w in SHAPES], [w for w in said if w in COLOURS]
    if said[0] == "from":
        objects = sorted(objects, key=lambda item: item.x)
        return [item.shape for item in objects] == shapes and (not colours or [o.colour for o in objects] == colours)
    if shapes:
        return sorted(shapes) == sorted(item.shape for item in objects) and set(colours) <= {o.colour for o in objects}
    return not colours or sorted(colours) == sorted({item.colour for item in objects})
