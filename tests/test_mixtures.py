"""Several datasets as one stream: exact ratios and epochs, whatever the workers, the processes and the resumes."""

import collections
import contextlib
import dataclasses
import itertools
from pathlib import Path
import pickle

import numpy as np
from PIL import Image
import pytest

from tc_jepa import write_word_vectors
from tc_jepa.batch import JepaBatch
from tc_jepa.config import data as config_data
from tc_jepa.config.validate import validate
from tc_jepa.data import mixtures, pipeline
from tc_jepa.data.captions.tokenizer import CaptionTokenizer, scenes_vocabulary_path
from tc_jepa.data.inputs.jepa import CropAndCaptions, JepaInputs
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Example
from tc_jepa.data.transforms import Crop
from tc_jepa.data.word_vectors.folder import WordVectorInfo
from tc_jepa.errors import UserError
from tests import tiny
from tests.preparing import write_lines
from tests.test_train import mite, tiny_config  # noqa: F401 - mite is a fixture

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Images that say which one of which dataset they are."""

    dataset: int
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Example(np.full((16, 16, 3), (self.dataset, index, 0), np.uint8), ("a star",) * (self.dataset + 1))


AUGMENT = CropAndCaptions(
    Crop(tiny.IMAGE, (1.0, 1.0), (1.0, 1.0), False), CaptionTokenizer(scenes_vocabulary_path(), 6), 3
)
PARTS = (Numbered(0, 7), Numbered(1, 3), Numbered(2, 11))
SOURCES = {"every image": mixtures.Concatenation(PARTS), "ratio": mixtures.Mixture(PARTS, (0.5, 0.2, 0.3))}
kinds = pytest.mark.parametrize("kind", SOURCES)


def batches(kind, start=0, count=6, workers=0, **process):
    dataset = pipeline.batches(SOURCES[kind], JepaInputs(AUGMENT, tiny.MASKS), batch_size=6, seed=3, **process)
    with contextlib.closing(pipeline.iterate(dataset, start=start, workers=workers)) as iterator:
        return [JepaBatch(*(np.array(x) for x in batch)) for batch in itertools.islice(iterator, count)]


def drawn(kind, count=30) -> list[tuple[int, int]]:
    """(dataset, index) of the images of a stream."""
    return [tuple(int(x) for x in image[0, 0, :2]) for batch in batches(kind, count=count) for image in batch.images]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        for name, x, y in zip(JepaBatch._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


def test_workers_change_nothing():
    assert_equal(batches("ratio", workers=2), batches("ratio"))
    parts = pickle.loads(pickle.dumps(SOURCES["every image"]))  # as for a worker
    np.testing.assert_array_equal(parts[20].image, SOURCES["every image"][20].image)


@kinds
def test_a_resumed_stream_goes_on_where_it_stopped(kind):
    assert_equal(batches(kind, start=4, count=2), batches(kind)[4:])


@kinds
def test_processes_share_out_the_single_processs_batch(kind):
    parts = [batches(kind, process_index=i, process_count=3) for i in range(3)]
    for whole, *shares in zip(batches(kind), *parts, strict=True):
        for i, share in enumerate(shares):
            assert_equal([JepaBatch(*(x[i::3] for x in whole))], [share])


def test_without_weights_every_epoch_shows_every_image_once_in_a_new_order():
    stream, images = drawn("every image", 21), {(part.dataset, i) for part in PARTS for i in range(len(part))}
    epochs = [stream[start : start + 21] for start in range(0, 126, 21)]
    assert all(len(epoch) == 21 and set(epoch) == images for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({dataset for dataset, _ in epochs[0][:7]}) > 1  # shuffled across datasets


def test_with_weights_every_prefix_has_the_ratio_and_every_dataset_its_own_epochs():
    stream = drawn("ratio", 35)
    for length in range(1, len(stream) + 1):
        counts = collections.Counter(dataset for dataset, _ in stream[:length])
        for dataset, share in enumerate((0.5, 0.2, 0.3)):
            assert abs(counts[dataset] - share * length) < 1
    for part in PARTS:
        own, size = [index for dataset, index in stream if dataset == part.dataset], len(part)
        epochs = [tuple(own[start : start + size]) for start in range(0, len(own) - size + 1, size)]
        assert len(epochs) >= 5 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len(set(epochs)) > 2
    # Datasets of one size are not shuffled alike.
    twins = mixtures.Mixture((Numbered(0, 20), Numbered(1, 20)), (1, 1)).stream(0)
    orders = [[int(twins[i].image[0, 0, 1]) for i in range(start, 40, 2)] for start in (0, 1)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("weights", [(7, 3), (0.7, 0.3), (1, 1, 1), (1, 2, 3, 4, 5, 6), (10, 0.1), (3, 37, 5, 31)])
def test_no_share_is_ever_off_by_one(weights):
    schedule, counts = mixtures.Schedule(weights), [0] * len(weights)
    for position in range(300):
        part, place = schedule[position]
        assert place == counts[part]
        counts[part] += 1
        for count, weight in zip(counts, weights):
            assert abs(count - (position + 1) * weight / sum(weights)) < 1 - 1e-9
    far = 10**12 * sum(mixtures.whole_weights(weights))
    part, place = schedule[far]
    assert (part, place) == (schedule[0][0], 10**12 * mixtures.whole_weights(weights)[part])


def test_weights_are_read_as_they_are_written():
    assert mixtures.whole_weights((0.7, 0.3)) == mixtures.whole_weights((14, 6)) == (7, 3)
    assert mixtures.whole_weights((12.4, 14.8)) == (31, 37)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.path": "a,b", "data.weights": (1,)}, r"data.weights=\(1,\) are 1 for 2 datasets"),
        ({"data.path": "a,b", "data.weights": (1, 2, 3)}, "are 3 for 2 datasets"),
        ({"data.path": "a", "data.weights": (1,)}, "give one for each of several, or none"),
        ({"data.path": "a,b", "data.weights": (1, 0)}, "data.weights=.*positive"),
        ({"data.path": "a,b", "data.weights": (1, -2)}, "data.weights=.*positive"),
        ({"data.path": "a,b", "data.weights": (1, float("nan"))}, "data.weights=.*positive"),
        ({"data.path": "a,b", "data.weights": (1, float("inf"))}, "data.weights=.*positive"),
        ({"data.path": "a,b", "data.weights": (1, "much")}, "data.weights=.*positive"),
        ({"data.path": "a,b", "data.weights": (1.23456, 1)}, "13966"),
        ({"data.path": "a,,b"}, "has an empty path"),
    ],
)
def test_settings_that_cannot_be_met_are_named(changes, said):
    config = tiny_config()
    config.update_from_flattened_dict(changes)
    if said == "13966":
        validate(config)
        config.data.weights = (1.234567, 1)
        said = "data.weights=.*2234567"
    with pytest.raises(UserError, match=said) as refusal:
        validate(config)
    assert "\n" not in str(refusal.value)


def test_a_ratio_with_an_empty_dataset_is_refused():
    with pytest.raises(UserError, match="dataset 2 of data.path"):
        mixtures.Mixture((Numbered(0, 3), Numbered(1, 0)), (1, 1))
    assert len(mixtures.Concatenation((Numbered(0, 0), Numbered(1, 2), Numbered(2, 0)))) == 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[str]:
    """Two prepared datasets with 20 and 10 training images and their scenes' labels, and one without val, vocabulary
    or labels, with 4."""
    paths = [tmp_path_factory.mktemp("mixture") / name for name in ("shapes", "more", "bare")]
    for seed, (path, count) in enumerate(zip(paths[:2], (20, 10))):
        prepare_scenes(count, str(path), seed=seed, size=32)
    images, lines = tmp_path_factory.mktemp("images"), []
    for number in range(4):
        Image.fromarray(SceneSource(2, "train", 4, 32)[number].image).save(images / f"{number}.png")
        lines.append({"file": f"{number}.png", "captions": ["a scene"]})
    write_lines(images / "captions.jsonl", lines)
    prepare_folder(str(images), str(images / "captions.jsonl"), str(paths[2]))
    return [str(path) for path in paths]


def test_a_run_reads_them_all_with_one_vocabulary_and_their_own_vectors(folders, tmp_path):
    stamp = WordVectorInfo("lengths", None, None, 10, 2, "float32")
    for number, path in enumerate(folders):

        def encode(captions, number=number):
            return [np.full((min(len(text.split()), 10), 2), number) for text in captions]

        write_word_vectors(path, str(tmp_path / str(number)), encode, stamp)
    shapes, more, bare = folders
    both = {"data.path": f"{shapes},{more}"}
    config = tiny_config(**both)
    assert len(config_data.training_source(config)) == 30 and len(config_data.held_out_source(config)) == 3
    assert config_data.tokenizer(config).vocabulary_size > 100
    vectors = {"model.text": "stored", "captions.vectors": f"{tmp_path}/0,{tmp_path}/1"}
    config = tiny_config(**both, **vectors, **{"data.weights": (3, 1)})
    words = config_data.word_folders(config)
    source = config_data.training_source(config, words)
    assert {number: int(source[index].captions[0][0, 0]) for number, index in ((0, 19), (1, 20))} == {0: 0, 1: 1}
    assert int(config_data.held_out_source(config, words)[2].captions[0][0, 0]) == 1
    stream = source.stream(0)
    assert [int(stream[i].captions[0][0, 0]) for i in range(40)].count(1) == 10
    config.captions.vectors = f"{tmp_path}/1,{tmp_path}/0"  # in the other order
    with pytest.raises(UserError, match="10 images.* 20"):
        config_data.training_source(config, config_data.word_folders(config))

    config = tiny_config(**{"data.path": f"{shapes},{bare}"})
    assert len(config_data.training_source(config)) == 24 and len(config_data.held_out_source(config)) == 2
    with pytest.raises(UserError, match="bare .*captions.vocabulary"):
        config_data.tokenizer(config)
    config.captions.vocabulary = scenes_vocabulary_path()
    assert config_data.tokenizer(config).vocabulary_size > 100


def test_without_any_held_out_images_the_monitor_looks_at_training_images_and_says_so(folders, caplog):
    config = tiny_config(**{"data.path": f"{folders[2]},{folders[2]}"})
    with caplog.at_level("WARNING", logger="absl"):
        assert len(config_data.held_out_source(config)) == 8
    assert "the monitor looks at training images" in caplog.text


def test_vocabularies_that_differ_are_refused(folders, tmp_path):
    other = tmp_path / "other"
    prepare_scenes(2, str(other), seed=0, size=32)
    (other / "vocabulary.model").write_bytes(Path(scenes_vocabulary_path()).read_bytes() + b"\n")
    config = tiny_config(**{"data.path": f"{folders[0]},{other}"})
    with pytest.raises(UserError, match="other .*shapes.*captions.vocabulary"):
        config_data.tokenizer(config)


def test_an_evaluation_asks_for_one_of_them(folders):
    config = tiny_config(**{"data.path": ",".join(folders[:2])})
    with pytest.raises(UserError, match=f"evaluation.data .*{folders[0]}, {folders[1]}"):
        config_data.source(config, "test")
