"""Segmentation and grounding: what they score, and that they cannot be fooled."""

import dataclasses

import jax
import numpy as np
import pytest

from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.class_phrases import ClassPhrases, named_segmentation
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Example, Phrase
from tc_jepa.errors import UserError
from tc_jepa.evaluation.examples import Examples
from tc_jepa.evaluation.reading import FrozenReader
from tc_jepa.evaluation.runner import evaluate, with_gains
from tc_jepa.evaluation.scores import mean_of_images, Measured
from tc_jepa.evaluation.tasks import grounding, segmentation
from tc_jepa.evaluation.tasks.segmentation import IGNORED, Labelled
from tests import tiny
from tests.test_evaluation import pixels

TOKENIZER = CaptionTokenizer(scenes_vocabulary_path(), 12)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def labelled(rng, count: int, signal: float) -> Labelled:
    """4 x 4 patches of 2 x 2 pixels with classes of their own, written into the features or not."""
    classes = rng.integers(3, size=(count, 4, 4))
    features = rng.normal(size=(count, 16, 8)) + signal * 6 * np.eye(8)[classes.reshape(count, 16)]
    return Labelled(features.astype(np.float32), classes.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8))


def shapes_of(test: Labelled) -> list[tuple[int, int]]:
    return [labels.shape for labels in test.labels]


def scores(train: Labelled, test: Labelled) -> list[float]:
    """mIoU of the linear head and of the nearest patches."""
    arguments = train, test.features, 3, shapes_of(test)
    predicted = segmentation.segment(*arguments).predicted, segmentation.nearest(*arguments)
    return [segmentation.miou(segmentation.confusions(labels, test.labels, 3).sum(axis=0)) for labels in predicted]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(segmentation, "STEPS", 60)


def test_classes_written_into_patches_are_found_and_noise_scores_chance(rng, short):
    train, test = labelled(rng, 40, 1.0), labelled(rng, 20, 1.0)
    for score in scores(train, test):
        assert score > 0.75  # bilinear logits blur the borders
    train, test = labelled(rng, 40, 0.0), labelled(rng, 20, 0.0)
    for score in scores(train, test):
        assert score < 0.27  # three even classes at random: 0.2


def test_ignored_pixels_count_nowhere(rng, short):
    train, test = labelled(rng, 40, 1.0), labelled(rng, 20, 1.0)
    hidden = rng.random(train.labels.shape) < 0.3
    spoilt = train._replace(labels=np.where(hidden, IGNORED, train.labels).astype(np.uint8))
    test.labels[:, 0] = IGNORED
    assert min(scores(spoilt, test)) > 0.75
    predicted = segmentation.segment(spoilt, test.features, 3, shapes_of(test)).predicted
    confusion = segmentation.confusions(predicted, test.labels, 3)
    assert confusion.sum() == (test.labels != IGNORED).sum()
    assert (confusion.sum(axis=(1, 2)) == 7 * 8).all()
    everything = test._replace(labels=np.full_like(test.labels, IGNORED))
    with pytest.raises(UserError, match="255"):
        segmentation.confusions(predicted, everything.labels, 3)
    with pytest.raises(UserError, match="255"):
        train.labels[np.arange(40) % 5 > 0] = IGNORED  # all but those that choose
        segmentation.segment(train, test.features, 3, shapes_of(test))
    with pytest.raises(UserError, match="segmentation .*5"):
        segmentation.segment(Labelled(*(x[:5] for x in train)), test.features, 3, shapes_of(test))


def test_a_segmentation_cannot_be_fooled(rng):
    """Predictions of other images, or of one class alone, score chance; a sweep names each setting once."""
    test = labelled(rng, 300, 1.0)
    wrong = segmentation.miou(segmentation.confusions(test.labels[::-1], test.labels, 3).sum(axis=0))
    assert wrong == pytest.approx(1 / 5, abs=0.02)  # a third right, so 1/9 of 5/9
    one = segmentation.miou(segmentation.confusions(np.ones_like(test.labels), test.labels, 3).sum(axis=0))
    assert one == pytest.approx(1 / 9, abs=0.01)
    assert segmentation.miou(segmentation.confusions(test.labels, test.labels, 3).sum(axis=0)) == 1.0


def test_a_patch_has_the_shares_of_its_pixels():
    labels = np.array([[[0, 1, 2, IGNORED], [1, 1, IGNORED, IGNORED], [255] * 4, [255, 255, 0, 2]]], np.uint8)
    shares = segmentation.patch_shares(labels, 3, 2)
    np.testing.assert_allclose(shares[0], [[0.25, 0.75, 0], [0, 0, 1], [0, 0, 0], [0.5, 0, 0.5]])


def test_miou_is_the_mean_over_true_classes_of_pixels_pooled_over_images():
    confusion = np.array(
        [[[3, 1, 0, 0], [0, 2, 0, 0], [0] * 4, [0] * 4], [[1, 0, 1, 0], [2, 0, 0, 0], [0] * 4, [0] * 4]]
    )
    ious = segmentation.class_ious(confusion.sum(axis=0))
    np.testing.assert_allclose(ious[:2], [4 / 8, 2 / 5])
    assert np.isnan(ious[2:]).all()  # never true: predicted once, or never
    assert segmentation.miou(confusion.sum(axis=0)) == pytest.approx(0.45)
    measured = segmentation.measure(confusion, np.array([[1.0, 2.0], [1.0, 0.0]]))
    np.testing.assert_allclose(measured.resampled, [0.45, (3 / 4 + 2 / 3) / 2])


def test_chance_is_what_the_train_masks_are_mostly_made_of():
    true = np.array([6, 3, 0])  # pixels of each class
    train = np.array([[[1, 1], [IGNORED, 0]], [[IGNORED, IGNORED], [IGNORED, 1]]], np.uint8)
    assert segmentation.chance(true, train) == pytest.approx(3 / 9 / 2)
    assert segmentation.chance(true, np.full((1, 2, 2), 2, np.uint8)) == 0


class Painted:
    """Images of 16 x 16 pixels in two bands, the lighter ones of class 1; three quarters are of class `mostly`."""

    tasks, segmentations = {}, {"band": ("dark", "light")}

    def __init__(self, count: int, mostly: int):
        self._count, self._mostly = count, mostly

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        noise = np.random.default_rng(index).integers(0, 60, (16, 16, 3))
        return Example((noise + 150 * self.mask(index)[..., None]).astype(np.uint8), ())

    def mask(self, index, name="band"):
        light = (np.arange(16) < 12) == self._mostly
        return np.tile(light[:, None], 16).astype(np.uint8)


MASKS_READ = {"train_examples": 1, "test_examples": 9, "dense_examples": 20}


def test_an_evaluation_takes_chance_from_the_masks_that_it_is_fitted_on(short):
    found = evaluate(pixels(), {}, Painted(20, 1), Painted(9, 0), ["segmentation"], **MASKS_READ).scores
    for score in ("segmentation", "segmentation_knn"):
        assert found[f"chance/{score}/band"] == pytest.approx(1 / 4 / 2)


def test_encoders_of_other_image_sizes_are_tested_on_the_same_masks(short, monkeypatch):
    shapes = []
    measured = segmentation.confusions

    def counted(predicted, labels, classes):
        shapes.append((len(labels), {x.shape for x in labels} | {x.shape for x in predicted}))
        return measured(predicted, labels, classes)

    monkeypatch.setattr(segmentation, "confusions", counted)
    others = {"compared": pixels(size=32, patch_size=8), "same": pixels()}
    found = evaluate(pixels(), others, Painted(20, 1), Painted(9, 0), ["segmentation"], **MASKS_READ)
    assert [sizes for count, sizes in shapes if count == 9] == 6 * [{(16, 16)}]
    for score in ("segmentation", "segmentation_knn"):
        assert found.scores[f"{score}/band"] == found.scores[f"same/{score}/band"] > 0.8
        assert found.scores[f"compared/{score}/band"] > 0.7  # its patches end where the band ends, too


class Wide(Painted):
    """Three times as wide as high, light in a quarter at one end, which a centred square would cut off."""

    def __getitem__(self, index):
        return Example(200 * self.mask(index)[..., None].repeat(3, axis=-1), ())

    def mask(self, index, name="band"):
        return np.ascontiguousarray(super().mask(index, name).T.repeat(3, axis=1))


def test_images_are_seen_whole_and_labelled_at_their_own_size(short):
    found = evaluate(pixels(), {}, Wide(20, 0), Wide(9, 0), ["segmentation"], **MASKS_READ)
    maps = found.label_maps["band"]
    assert {labels.shape for labels in (*maps.truth, *maps.predicted)} == {(16, 48)}
    assert found.scores["segmentation/band"] > 0.8  # cut to the middle, it would know one class: 0.375
    assert found.scores["segmentation_knn/band"] > 0.8


def test_patches_are_enlarged_as_jax_enlarges_them():
    for size, side in ((60, 6), (45, 7), (7, 7)):
        expected = jax.image.resize(np.eye(side, dtype=np.float32), (size, side), "bilinear")
        np.testing.assert_allclose(segmentation.weights(size, side), expected, atol=1e-6)


def test_label_maps_of_all_shapes_are_those_of_each_alone(rng, short, monkeypatch):
    train, test = labelled(rng, 40, 1.0), labelled(rng, 5, 1.0)
    shapes = [(8, 8), (70, 30), (5, 130), (64, 64), (8, 9)]
    with monkeypatch.context() as little:
        little.setattr(segmentation, "TEST_CHUNK", 2)
        little.setattr(segmentation, "MOST_LOGITS", 64 * 20 * 3)  # strips of 20 rows, and of 7
        together = segmentation.segment(train, test.features, 3, shapes).predicted
        nearest = segmentation.nearest(train, test.features, 3, shapes)
    for image, shape in enumerate(shapes):
        alone = segmentation.segment(train, test.features[image : image + 1], 3, [shape]).predicted[0]
        assert alone.shape == shape and len(np.unique(alone)) > 1
        np.testing.assert_array_equal(together[image], alone)
        one = segmentation.nearest(train, test.features[image : image + 1], 3, [shape])[0]
        assert (nearest[image] == one).mean() > 0.99  # votes that are even may fall either way


class Speckled(Painted):
    """With a pixel of class 2, which masks of half the size have not; none of the classes has a name."""

    segmentations = {"band": ()}

    def mask(self, index, name="band"):
        mask = super().mask(index, name).repeat(2, axis=0).repeat(2, axis=1)
        mask[0, 0] = 2
        return mask

    def __getitem__(self, index):
        return Example(100 * self.mask(index)[..., None].repeat(3, axis=-1), ())


def test_a_class_that_only_larger_masks_hold_is_a_class_of_all(short):
    others = {"compared": pixels(size=32, patch_size=8)}
    found = evaluate(pixels(), others, Speckled(20, 1), Speckled(9, 0), ["segmentation"], **MASKS_READ)
    assert found.label_maps["band"].classes == ["0", "1", "2"]


def test_classes_have_their_names_or_numbers():
    examples = Examples(Masked(), np.arange(1))
    assert segmentation.class_names("mask", examples, examples) == ("background", "dog", "traffic light")
    assert segmentation.class_names("unnamed", examples, examples) == ["0", "1", "2"]


def test_gains_are_over_baselines_that_have_the_score():
    scores = {name: Measured(value, np.full(4, value)) for name, value in (("a", 0.5), ("init/a", 0.3), ("b", 0.1))}
    results = with_gains(scores, ["", "init/", "pixels/"])
    assert results["gain_over_init/a"] == pytest.approx(0.2) and results["a_low"] == 0.5
    assert not any(key.startswith(("gain_over_init/b", "gain_over_pixels")) for key in results)


class Oracle:
    """A reader whose cosines are given: `right` points at the phrase's object, else at its opposite."""

    grid = (4, 4)

    def __init__(self, source, right: bool):
        self._source, self._right = source, right
        self._truth = {}

    def cosines(self, images, caption_words, word_valid):
        maps = np.zeros((len(images), 16, *caption_words.shape[1:]), np.float32)
        for row, (image, ids) in enumerate(zip(images, caption_words[:, 0])):
            for phrase in self._phrases(image):
                wanted, _ = TOKENIZER.encode([phrase.caption])
                if (wanted[0] == ids).all():
                    covered = grounding.coverage(phrase.mask, self.grid)
                    place = grounding.word_pieces(TOKENIZER, ids, phrase.word)
                    maps[row, :, 0] += (covered if self._right else -covered)[:, None] * place
        return maps

    def _phrases(self, image):
        for index in range(len(self._source)):
            if np.array_equal(self._source[index].image, image):
                return self._source.phrases(index)
        return []


@dataclasses.dataclass(frozen=True)
class OneWordEach:
    """Scenes whose phrases are those of shapes alone, so that a caption has one pointing word."""

    scenes: SceneSource

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        return self.scenes[index]

    def phrases(self, index) -> list[Phrase]:
        return [phrase for phrase in self.scenes.phrases(index) if phrase.kind == "shape"]

    def objects_mask(self, index):
        return self.scenes.objects_mask(index)


def test_pointing_right_scores_far_above_pointing_wrong():
    source = OneWordEach(SceneSource(0, "test", 6, 32, "hard"))
    right, wrong = (grounding.point(Oracle(source, right), TOKENIZER, source, range(6), 32) for right in (True, False))
    best = [grounding.coverage(p.mask, (4, 4)).max() for i in range(6) for p in source.phrases(i)]
    np.testing.assert_allclose(right.score, best)
    assert right.score.mean() > 5 * right.chance.mean() > 5 * wrong.score.mean()
    np.testing.assert_allclose(right.chance, [p.mask.mean() for i in range(6) for p in source.phrases(i)])
    assert (right.on_objects >= right.score).all() and right.on_objects.max() <= 1
    objects = [source.objects_mask(i).mean() for i in right.image]
    np.testing.assert_allclose(right.any_object, right.chance / objects)
    assert right.image.tolist() == [i for i in range(6) for _ in source.phrases(i)]


def test_overlap_is_one_for_a_map_that_is_the_object_and_its_area_for_one_that_knows_nothing():
    covered = np.eye(8)[np.arange(40) % 8] + np.eye(8)[(np.arange(40) + 1) % 8]
    place = {"image": np.arange(40), "kind": np.full(40, "shape"), "covered": covered}
    rest = dict.fromkeys(("score", "on_objects", "chance", "any_object"))
    right = grounding.overlap(grounding.Pointed(cosines=covered - 0.5, **place, **rest), "shape")
    np.testing.assert_allclose(right.iou, 1.0)
    np.testing.assert_allclose(right.everything, 2 / 8)
    assert right.image.tolist() == [i for i in range(40) if i % 5]  # the others chose the threshold
    blind = grounding.overlap(grounding.Pointed(cosines=np.zeros((40, 8)), **place, **rest), "shape")
    np.testing.assert_allclose(blind.iou, 2 / 8)
    with pytest.raises(UserError, match="colour"):
        grounding.overlap(grounding.Pointed(cosines=covered, **place, **rest), "colour")


def test_phrases_that_the_crop_or_the_words_cut_off_are_not_played():
    source = OneWordEach(SceneSource(0, "test", 6, 32, "hard"))

    class Cut(OneWordEach):
        def phrases(self, index):
            hidden = Phrase("a star", "star", "shape", np.zeros((32, 32), bool))
            far = Phrase(20 * "red " + "star", "star", "shape", np.ones((32, 32), bool))
            return [hidden, *super().phrases(index), far]

    cut = grounding.point(Oracle(source, True), TOKENIZER, Cut(source.scenes), range(6), 32)
    whole = grounding.point(Oracle(source, True), TOKENIZER, source, range(6), 32)
    np.testing.assert_array_equal(cut.score, whole.score)
    assert (cut.chance > 0).all()


def test_phrases_name_one_object_alone_and_show_what_is_seen_of_it():
    source = SceneSource(1, "test", 40, 48, "hard")
    for index in range(40):
        objects = source.scene(index).objects
        for phrase in source.phrases(index):
            (item,) = [item for item in objects if getattr(item, phrase.kind) == phrase.word]
            assert phrase.caption in (f"a {item.colour} {item.shape}", f"an {item.colour} {item.shape}")
            classes = dict(
                zip(("shape", "colour"), ([c for c in source.segmentations[k]] for k in ("shape", "colour")))
            )
            number = classes[phrase.kind].index(phrase.word)
            np.testing.assert_array_equal(phrase.mask, source.mask(index, phrase.kind) == number)


@dataclasses.dataclass(frozen=True)
class Masked:
    segmentations = {"unnamed": (), "mask": ("background", "dog", "traffic light")}

    def mask(self, index, name):
        return np.array([[0, 1], [IGNORED, 2]], np.uint8)


def test_masks_of_named_classes_make_phrases():
    assert named_segmentation(Masked()) == "mask"
    source = ClassPhrases(Masked(), "mask")
    dog, light = source.phrases(0)
    assert (dog.caption, dog.word, dog.kind) == ("a dog", "dog", "class")
    assert light.word == "traffic light" and light.mask.tolist() == [[False, False], [False, True]]
    assert source.objects_mask(0).tolist() == [[False, True], [False, True]]
    ids, _ = TOKENIZER.encode([light.caption])
    assert TOKENIZER.decode(ids[0][grounding.word_pieces(TOKENIZER, ids[0], light.word)]) == "traffic light"


def test_a_word_is_found_by_its_pieces():
    ids, _ = TOKENIZER.encode(["a zebra by a red star"])
    chosen = grounding.word_pieces(TOKENIZER, ids[0], "zebra")
    assert chosen.sum() > 1 and TOKENIZER.decode(ids[0][chosen]) == "zebra"
    with pytest.raises(UserError, match="circle.*a zebra by a red star"):
        grounding.word_pieces(TOKENIZER, ids[0], "circle")


def test_a_mean_over_images_weighs_what_each_has():
    counts = np.array([[1.0, 2.0, 0.0], [1.0, 1.0, 3.0], [1.0, 0.0, 0.0]])
    measured = mean_of_images(np.array([1.0, 0.0, 0.0, 1.0]), np.array([0, 0, 0, 2]), counts)
    assert measured.value == 0.5
    np.testing.assert_allclose(measured.resampled, [0.5, 2 / 6, np.nan])


# Reading a run's words


def test_cosines_read_the_image_and_each_word_for_itself():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(3)
    params = tiny.lively(state.params)
    reader = FrozenReader(method, params, state.extra)
    cosines = reader.cosines(batch.images, batch.caption_words, batch.word_valid)
    assert cosines.shape == (3, 16, 3, tiny.WORDS) and np.abs(cosines).max() <= 1
    assert (cosines[~np.broadcast_to(batch.word_valid[:, None], cosines.shape)] == 0).all()
    everything = np.broadcast_to(np.arange(16, dtype=np.int32), (3, 16))
    none = np.zeros((3, 1, 1), np.int32)
    seen = batch._replace(
        caption_valid=batch.word_valid.any(axis=-1),
        context_indices=everything,
        context_valid=everything >= 0,
        target_indices=none,
        target_valid=none > 0,
    )
    readings = method.predict(params, state.extra, seen).readings
    expected = np.mean([reading.cosine_BxMxLxCxS[:, 0, :16] for reading in readings], axis=0)
    np.testing.assert_allclose(cosines, np.where(batch.word_valid[:, None], expected, 0.0), atol=1e-5)
    others = reader.cosines(batch.images[::-1], batch.caption_words, batch.word_valid)
    assert np.abs(cosines - others)[1].max() < 1e-6 < np.abs(cosines - others)[0].max()  # the middle image is the same


def test_errors_are_those_of_hidden_patches_and_words_change_them():
    method = tiny.jepa()
    state, batch = tiny.state(method), tiny.batch(3)
    reader = FrozenReader(method, tiny.lively(state.params), state.extra)
    arguments = batch.images, batch.caption_words
    errors = reader.errors(*arguments, batch.word_valid, tiny.MASKS, draws=2)
    drawn = [tiny.MASKS.draw_at(0, i) for i in range(6)]
    for image in range(3):
        hidden = {
            int(i) for draw in (drawn[image], drawn[3 + image]) for i in draw.target_indices[draw.target_valid].ravel()
        }
        assert set(np.flatnonzero(np.isfinite(errors[image]))) == hidden
    wordless = reader.errors(*arguments, np.zeros_like(batch.word_valid), tiny.MASKS, draws=2)
    np.testing.assert_array_equal(np.isnan(wordless), np.isnan(errors))
    assert np.nanmax(np.abs(wordless - errors)) > 1e-3
