"""TFDS folders of others, whose features have other names, read as they are."""

import hashlib
import io
import json
from pathlib import Path
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from configs import base
from tc_jepa.config import data as config_data
from tc_jepa.config.validate import validate
from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepared import ENDS, FeatureNames, file_identity, PreparedDataset, PreparedSource
from tc_jepa.data.word_vectors.folder import WordVectorFolder, WordVectorInfo
from tc_jepa.data.word_vectors.write import write_word_vectors
from tc_jepa.errors import UserError
from tests.preparing import PHOTO_LINES, PHOTOS, write_lines

TEXT, LABEL = tfds.features.Text(), tfds.features.ClassLabel(names=["cat", "dog"])
PHOTO = (PHOTOS / PHOTO_LINES[0]["file"]).read_bytes()


def write(folder: Path, features: dict, examples: list[dict], split: str = "train") -> str:
    identity = tfds.core.DatasetIdentity(name="x", version="1.0.0", data_dir=str(folder), module_name="x")
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 10, file_format="array_record")
    writer.initialize_splits([split])
    writer.add_examples({split: examples})
    writer.close_all()
    return str(folder)


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> str:
    features = {
        "jpg": tfds.features.Image(),
        "title": TEXT,
        "answers": tfds.features.Sequence({"id": np.int64, "long": TEXT}),
        "about": {"alt": tfds.features.Sequence(TEXT), "deep": {"text": TEXT}},
        "kind": LABEL,
        "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "name": LABEL}),
    }
    example = {
        "jpg": PHOTO,
        "title": "a cat",
        "answers": [{"id": 1, "long": "A Cat. It sleeps. It sleeps!"}, {"id": 2, "long": "No dog"}],
        "about": {"alt": ["x y", ""], "deep": {"text": "p"}},
        "kind": "dog",
        "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0), "name": "cat"}],
    }
    return write(tmp_path_factory.mktemp("others"), features, [example])


@pytest.mark.parametrize(
    ("captions", "descriptions", "expected"),
    [
        ((), (), ()),
        (("title",), (), ("a cat",)),
        (("title", "about.alt"), (), ("a cat", "x y")),
        (("about.alt", "title"), (), ("x y", "a cat")),
        (("about.deep.text",), (), ("p",)),
        (("title",), ("answers.long",), ("a cat", "It sleeps.", "No dog")),
        (("answers.long",), (), ("A Cat. It sleeps. It sleeps!", "No dog")),
    ],
)
def test_named_texts_are_pooled_and_split(others, captions, descriptions, expected):
    source = PreparedSource(others, "train", FeatureNames("jpg", captions, descriptions))
    assert source[0].captions == expected
    assert source[0].image.ndim == 3


def test_words_are_encoded_of_the_named_texts(others, tmp_path):
    def encode(texts):
        return [np.full((1, 2), len(text)) for text in texts]

    stamp, output = WordVectorInfo("lengths", None, None, 4, 2, "float32"), str(tmp_path / "words")
    named = FeatureNames("jpg", ("title",), ("answers.long",))
    with pytest.raises(UserError, match="no image feature 'image'"):
        write_word_vectors(others, output, encode, stamp)
    write_word_vectors(others, output, encode, stamp, features=named)
    words = WordVectorFolder(output)
    captions = words.attach(PreparedSource(others, "train", named), "train")[0].captions
    assert [caption[0, 0] for caption in captions] == [len("a cat"), len("It sleeps."), len("No dog")]
    with pytest.raises(UserError, match="image 0: .*other captions"):
        words.attach(PreparedSource(others, "train", FeatureNames("jpg", ("title",))), "train")


def test_labels_are_the_named_ones_or_all_that_are_not_nested(others):
    assert list(PreparedSource(others, "train", FeatureNames("jpg")).tasks) == ["kind"]
    source = PreparedSource(others, "train", FeatureNames("jpg", labels=("objects.name", "kind")))
    assert {name: task.kind for name, task in source.tasks.items()} == {"kind": "single", "objects.name": "multi"}
    labels = source.labels(0)
    assert labels["kind"] == 1 and labels["objects.name"].tolist() == [True, False]


MASK = np.array([[0, 1, 255], [2, 2, 1]], np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_masks(folder: Path, masks: list[np.ndarray], **features) -> str:
    """Images of 3 x 2 pixels, each with one of the masks as "annotation"."""
    given = {"image": tfds.features.Image(), "annotation": tfds.features.Image(), **features}
    image = png(np.zeros((2, 3, 3), np.uint8))
    return write(folder, given, [{"image": image, "annotation": png(mask)} for mask in masks])


def test_a_mask_may_have_another_name(tmp_path):
    path = write_masks(tmp_path, [MASK])
    assert not PreparedSource(path, "train").segmentations
    source = PreparedSource(path, "train", FeatureNames(mask="annotation"))
    assert source.segmentations == {"annotation": ()} and source[0].image.shape == (2, 3, 3)
    np.testing.assert_array_equal(source.mask(0, "annotation"), MASK)


def test_a_labelled_mask_brings_the_names_of_its_classes(tmp_path):
    labelled = tfds.features.LabeledImage(labels=["sky", "sea", "sand"])
    path = write_masks(tmp_path, [MASK, MASK + np.uint8(1)], annotation=labelled)
    source = PreparedSource(path, "train", FeatureNames(mask="annotation"))
    assert source.segmentations == {"annotation": ("sky", "sea", "sand")}
    np.testing.assert_array_equal(source.mask(0, "annotation"), MASK)
    with pytest.raises(UserError, match="annotation of train/1 .*class 3"):
        source.mask(1, "annotation")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK.T.copy(), "2 x 3 pixels .* 3 x 2"),
        (np.zeros((2, 3, 3), np.uint8), "one channel"),
        (np.full((2, 3), 300, np.uint16), "at most 255"),
    ],
    ids=["size", "colours", "16 bits"],
)
def test_a_mask_that_cannot_be_is_named(tmp_path, mask, message):
    source = PreparedSource(write_masks(tmp_path, [MASK, mask]), "train", FeatureNames(mask="annotation"))
    with pytest.raises(UserError, match=f"annotation of train/1 .*{message}") as error:
        source.mask(1, "annotation")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("features", "missing", "available"),
    [
        (FeatureNames(), "image", "jpg$"),
        (FeatureNames("title"), "title", "jpg$"),
        (FeatureNames("jpg", ("titel",)), "titel", "about.alt, .*title"),
        (FeatureNames("jpg", ("answers",)), "answers", "answers.long"),
        (FeatureNames("jpg", ("answers.id",)), "answers.id", "title"),
        (FeatureNames("jpg", ("kind",)), "kind", "title"),
        (FeatureNames("jpg", (), ("jpg",)), "jpg", "title"),
        (FeatureNames("jpg", labels=("title",)), "title", "kind, objects.name$"),
        (FeatureNames("jpg", mask="mask"), "mask", "jpg$"),
    ],
)
def test_missing_features_are_refused_and_the_available_ones_listed(others, features, missing, available):
    with pytest.raises(UserError, match=f"'{missing}'.*{available}") as error:
        PreparedSource(others, "train", features)
    assert "\n" not in str(error.value) and others in str(error.value)


def test_a_dataset_with_other_names_is_read_as_one_that_was_prepared(tmp_path):
    lines = [line for line in PHOTO_LINES if line["split"] == "train"]
    long = ["A long one. It ends " + str(index) for index in range(len(lines))]
    given = [line | {"descriptions": text} for line, text in zip(lines, long)]
    prepare_folder(str(PHOTOS), str(write_lines(tmp_path / "c.jsonl", given)), str(tmp_path / "ours"))
    ours = PreparedSource(str(tmp_path / "ours"), "train")
    features = {
        "picture": tfds.features.Image(),
        "raw": tfds.features.Sequence({"text": TEXT}),
        "long": TEXT,
        "things": tfds.features.Sequence(tfds.features.ClassLabel(names=ours.tasks["labels"].classes)),
    }
    (tmp_path / "theirs").mkdir()
    examples = [
        {
            "picture": (PHOTOS / line["file"]).read_bytes(),
            "raw": [{"text": text} for text in line["captions"]],
            "long": text,
            "things": sorted(line["labels"]),
        }
        for line, text in zip(lines, long)
    ]
    path = write(tmp_path / "theirs", features, examples)
    theirs = PreparedSource(path, "train", FeatureNames("picture", ("raw.text",), ("long",), ("things",)))
    assert len(theirs) == len(ours)
    for index in range(len(ours)):
        np.testing.assert_array_equal(theirs[index].image, ours[index].image)
        assert theirs[index].captions == ours[index].captions
        np.testing.assert_array_equal(theirs.labels(index)["things"], ours.labels(index)["labels"])


def test_tfds_folders_as_coco_captions_open_without_a_word(tmp_path):
    """Dicts with text; a split called validation; unknown labels as -1."""
    captions = tfds.features.Sequence({"id": np.int64, "text": TEXT})
    features = {"image": tfds.features.Image(), "captions": captions, "label": LABEL}
    example = {"image": PHOTO, "captions": [{"id": 4, "text": "a"}, {"id": 5, "text": "b"}], "label": "dog"}
    path = write(tmp_path, features, [example, example | {"label": -1}], split="validation")
    source = PreparedSource(path, "val")
    assert source[0].captions == ("a", "b")
    assert source.labels(0) == {"label": 1}
    with pytest.raises(UserError, match="image 1 .*label"):
        source.labels(1)


def test_the_split_to_test_on_is_test_or_val_or_the_one_that_is_named(tmp_path):
    config = base.get_config()
    assert config_data.test_split(config) == "test"
    lines = [dict(line) for line in PHOTO_LINES[:4]]
    for line, split in zip(lines, ("train", "val", "test", "test")):
        line["split"] = split
    for name, count in (("train", 1), ("val", 2), ("both", 4)):
        prepare_folder(str(PHOTOS), str(write_lines(tmp_path / "c", lines[:count])), str(tmp_path / name))
    config.data.path = str(tmp_path / "both")
    assert config_data.test_split(config) == "test"
    config.evaluation.test_split = "val"
    assert config_data.test_split(config) == "val"
    config.evaluation.test_split = "dev"
    with pytest.raises(UserError, match="evaluation.test_split=dev .*both.*train, val, test"):
        config_data.test_split(config)
    config.evaluation.test_split = "train"
    with pytest.raises(UserError, match="evaluation.test_split=train"):
        config_data.test_split(config)
    config.data.path, config.evaluation.test_split = str(tmp_path / "val"), ""
    assert config_data.test_split(config) == "val"
    config.data.path = str(tmp_path / "train")
    with pytest.raises(UserError, match=f"{tmp_path}/train .*only train"):
        config_data.test_split(config)


def test_the_configuration_names_features(others):
    config = base.get_config()
    config.data.path, config.data.image_feature = others, "jpg"
    config.data.caption_features, config.data.description_features = ("title",), ("answers.long",)
    config.data.label_features, config.data.mask_feature = ("objects.name",), "jpg"
    validate(config)
    source = config_data.source(config, "train")
    assert source[0].captions == ("a cat", "It sleeps.", "No dog") and list(source.tasks) == ["objects.name"]
    assert list(source.segmentations) == ["jpg"]
    config.data.description_features = ("title",)
    with pytest.raises(UserError, match="title .*data.caption_features .*data.description_features"):
        validate(config)


def test_an_identity_is_that_of_the_contents_alone(tmp_path):
    examples = [{"name": "x" * length} for length in (200_000, 30, 200_000)]
    first = Path(write(tmp_path, {"name": TEXT}, examples))
    before = PreparedDataset(str(first)).identity()
    (shard,) = before["splits"]["train"]["shards"]
    assert before["splits"]["train"]["images"] == 3
    copy = tmp_path.with_name("copy")
    shutil.copytree(first, copy, copy_function=shutil.copyfile)
    assert PreparedDataset(str(copy)).identity() == before == json.loads(json.dumps(before))
    content = (copy / shard).read_bytes()
    found = []
    for changed in (b"?" + content[1:], content[:-1] + b"?", content[:-1]):
        (copy / shard).write_bytes(changed)
        found.append(PreparedDataset(str(copy)).identity()["splits"]["train"]["shards"][shard])
    (copy / shard).unlink()
    found.append(PreparedDataset(str(copy)).identity()["splits"]["train"]["shards"][shard])
    assert len({json.dumps(one) for one in found}) == 4 and before["splits"]["train"]["shards"][shard] not in found
    (first / "vocabulary.model").write_bytes(b"x")
    assert PreparedDataset(str(first)).identity() != before


@pytest.mark.parametrize("size", [0, 10, ENDS, ENDS + 1, 2 * ENDS, 2 * ENDS + 1])
def test_both_ends_of_a_file_count_once(tmp_path, size):
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "file").write_bytes(content)
    ends = content if size <= 2 * ENDS else content[:ENDS] + content[-ENDS:]
    assert file_identity(tmp_path / "file") == {"bytes": size, "ends": hashlib.sha256(ends).hexdigest()}
