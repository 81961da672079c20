"""Damaged records are named with their shard, or replaced by a function of the index alone."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import base
from tc_jepa.config import data as config_data
from tc_jepa.config import methods
from tc_jepa.config.validate import validate
from tc_jepa.data import pipeline
from tc_jepa.data.bad_records import Replacing
from tc_jepa.data.images import EncodedImage
from tc_jepa.data.inputs.views import Views
from tc_jepa.data.photometric import Photometric
from tc_jepa.data.prepared import PreparedSource
from tc_jepa.data.sources import BadRecord, Example
from tc_jepa.data.transforms import Crop
from tc_jepa.data.word_vectors.folder import WordVectorFolder
from tc_jepa.data.word_vectors.write import write_word_vectors
from tc_jepa.errors import UserError
from tests.test_prepared import PHOTO, write
from tests.test_words import HASHED, random_projection

SHARD = 10  # records; tests.test_prepared.write has as many
KIND = tfds.features.ClassLabel(names=[str(number) for number in range(SHARD)])
PLAIN = Views(2, Crop(16, (0.3, 1.0), (1.0, 1.0), False), Photometric(0, 0, 0, 0, 0, 0, 0, (1.0, 1.0), 0))


def dataset(folder: Path, images: dict[int, bytes], count: int = SHARD) -> str:
    """A folder of `count` photographs, of which some are other bytes. Label and caption are the index."""
    folder.mkdir(exist_ok=True)
    features = {"image": tfds.features.Image(), "captions": tfds.features.Text(), "kind": KIND}
    examples = [
        {"image": images.get(index, PHOTO), "captions": f"number {index}", "kind": index % SHARD}
        for index in range(count)
    ]
    return write(folder, features, examples)


def flip(path: str, marker: bytes) -> Path:
    """Flips one bit where `marker` begins, and returns the shard."""
    (found,) = [shard for shard in Path(path).glob("*array_record*") if marker in shard.read_bytes()]
    content = bytearray(found.read_bytes())
    content[content.index(marker)] ^= 1
    found.write_bytes(content)
    return found


def config_of(path: str, **changes):
    config = base.get_config()
    config.update_from_flattened_dict({"data.path": path, "model.conditioner": "none"} | changes)
    validate(config)
    return config


def test_a_flipped_bit_is_named_with_shard_and_record(tmp_path):
    path = dataset(tmp_path, {}, 2 * SHARD)
    shard = flip(path, b"number 13")
    source = PreparedSource(path, "train")
    for read in (source.__getitem__, source.captions, source.labels):
        with pytest.raises(BadRecord, match=r"record 3 \(image 13 of split train\)") as error:
            read(13)
        assert error.value.about == str(shard) and "\n" not in str(error.value)
    assert source[12].captions == ("number 12",)


def test_a_bad_first_record_is_replaced_where_word_vectors_are_stored(tmp_path):
    """The first and last captions are compared with those that were encoded when a source is opened."""
    path, words = dataset(tmp_path / "data", {}), str(tmp_path / "words")
    write_word_vectors(path, words, random_projection, HASHED)
    flip(path, b"number 0")
    source = WordVectorFolder(words).attach(PreparedSource(path, "train"), "train")
    with pytest.raises(BadRecord):
        source[0]
    np.testing.assert_array_equal(Replacing(source, path, 0.2)[0].captions, source[1].captions)


def test_a_shard_that_was_cut_is_named(tmp_path):
    path = dataset(tmp_path, {})
    (shard,) = Path(path).glob("*array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(UserError) as error:
        PreparedSource(path, "train")[0]
    assert error.value.about == str(shard)


@pytest.mark.parametrize("encoded", [False, True])
def test_an_image_that_does_not_decode_is_named_with_its_shard(tmp_path, encoded):
    source = PreparedSource(dataset(tmp_path, {3: PHOTO[:300]}), "train", encoded=encoded)
    with pytest.raises(BadRecord, match=r"array_record\S*: record 3 \(image 3 .*does not decode"):
        EncodedImage.pixels(source[3].image)


def test_a_file_that_is_gone_for_now_is_no_bad_record(tmp_path):
    """It may be back for the next reader, who would then read other images."""
    path = dataset(tmp_path, {})
    source = PreparedSource(path, "train")
    for shard in Path(path).glob("*array_record*"):
        shard.unlink()
    with pytest.raises(UserError) as error:
        source[0]
    assert not isinstance(error.value, BadRecord)


class Some:
    """A source of numbers, of which some are bad."""

    def __init__(self, count: int, bad: set[int]):
        self._count, self._bad = count, bad

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        if index in self._bad:
            raise BadRecord(f"record {index}")
        return Example(np.full((1, 1, 3), index, np.uint8), ())

    def labels(self, index):
        return {"kind": index}


@pytest.mark.parametrize("order", [range(10), range(9, -1, -1), (4, 3, 5, 4, 3, 9, 8, 0, 1, 2, 6, 7)])
def test_the_next_good_record_stands_in_whatever_was_read_before(order):
    """3 and 4 are followed by 5, and the last one by the first."""
    source, expected = Replacing(Some(10, {3, 4, 9}), "some", 0.3), [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    for index in order:
        assert source[index].image[0, 0, 0] == expected[index]
        assert source.labels(index) == {"kind": expected[index]}


def test_a_share_of_bad_records_is_borne_and_each_is_named_once(caplog):
    source = Replacing(Some(100, {50, 51}), "some", 0.02)
    with caplog.at_level("WARNING", logger="absl"):
        for index in [*range(100), *range(100)]:
            source[index]
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["50", "51"]
    above = Replacing(Some(100, {3, 50, 51}), "some", 0.02)
    above[3], above[3]
    with pytest.raises(UserError, match="3 of 100") as error:
        above[50]
    assert error.value.about == "data.bad_records_share" and not isinstance(error.value, BadRecord)
    with pytest.raises(UserError):
        Replacing(Some(3, {0, 1, 2}), "some", 0.99)[0]


def test_training_replaces_and_evaluation_does_not(tmp_path):
    path = dataset(tmp_path, {3: PHOTO[:300]})
    replace = {"data.bad_records": "replace", "data.bad_records_share": 0.1}
    config = config_of(path, **replace)
    for shrink in ("area", "fast"):
        config.image.shrink = shrink
        example = config_data.training_source(config)[3]
        assert example.captions == ("number 4",)
    for source in (config_data.source(config, "train"), config_data.training_source(config_of(path))):
        with pytest.raises(BadRecord):
            source[3]
    learned = config_of(path, **{"method.name": "supervised", **replace})
    assert methods.training_source(learned)[3].labels == {"kind": 4}


@pytest.mark.parametrize("start", [0, 2])
def test_batches_with_a_record_replaced_are_those_of_a_dataset_that_has_its_stand_in_twice(tmp_path, start):
    good, bad = dataset(tmp_path / "good", {}), dataset(tmp_path / "bad", {3: PHOTO[:300]})
    sources = [PreparedSource(good, "train"), Replacing(PreparedSource(bad, "train"), "bad", 0.1)]
    twice = [sources[0][4 if index == 3 else index] for index in range(SHARD)]
    read = []
    for source in (twice, sources[1]):
        stream = pipeline.batches(source, PLAIN, batch_size=4, seed=0)
        with contextlib.closing(pipeline.iterate(stream, start=start, stop=5, workers=0)) as batches:
            read.append([np.asarray(batch.views) for batch in batches])
    np.testing.assert_array_equal(*read)
