"""A dataset folder cannot make the program import a module, wherever and however it names one."""

import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tc_jepa.data.feature_classes import check_feature_classes
from tc_jepa.data.prepared import splits
from tc_jepa.errors import UserError
from tests.preparing import PHOTO_LINES, PHOTOS
from tests.test_prepared import write

ROOT = Path(__file__).parent.parent
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
SEQUENCE = "tensorflow_datasets.core.features.sequence_feature.Sequence"
FOREIGN, CLASS = "foreign_features", "foreign_features.Mark"
MARK = {"pythonClassName": CLASS, "text": {}}
LEGACY_MARK = {"type": CLASS, "content": {}}


def in_dict(feature: dict) -> dict:
    return {"pythonClassName": DICT, "featuresDict": {"features": {"a": feature}}}


NAMED = {
    "top": MARK,
    "by the field's other name": {"python_class_name": CLASS, "text": {}},
    "in a dict": in_dict(MARK),
    "in a sequence": in_dict({"pythonClassName": SEQUENCE, "sequence": {"feature": MARK, "length": "-1"}}),
    "legacy": LEGACY_MARK,
    "in a legacy dict": {"type": DICT, "content": {"a": LEGACY_MARK}},
    "in a feature called type": {"type": DICT, "content": {"type": LEGACY_MARK}},
    "in a legacy sequence": {"type": SEQUENCE, "content": {"feature": LEGACY_MARK, "length": None}},
    "in a legacy string": {
        "type": DICT,
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": json.dumps({"features": {"a": MARK}}),
    },
    "in JSON in a field": {"pythonClassName": DICT, "jsonFeature": {"json": json.dumps({"a": MARK})}},
}
OPEN = f"import sys; sys.path.append({str(ROOT)!r}); from tc_jepa.data.prepared import splits; splits(sys.argv[1])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A dataset, and beside it a module that leaves a file when it is imported."""
    folder = tmp_path_factory.mktemp("data")
    photo = (PHOTOS / PHOTO_LINES[0]["file"]).read_bytes()
    write(folder, {"image": tfds.features.Image()}, [{"image": photo}])
    (folder / f"{FOREIGN}.py").write_text(
        "from pathlib import Path\nimport tensorflow_datasets as tfds\nPath(__file__).with_name('imported').touch()\n"
        "class Mark(tfds.features.Text): pass\n"
    )
    return folder


@pytest.mark.parametrize(
    ("file", "features"),
    [("features.json", features) for features in NAMED.values()] + [("dataset_info.json", in_dict(MARK))],
    ids=[*NAMED, "in dataset_info.json"],
)
def test_a_foreign_class_is_refused_and_not_imported(folder, monkeypatch, file, features):
    monkeypatch.syspath_prepend(folder)
    path = folder / file
    before = path.read_text()
    path.write_text(json.dumps(features if file == "features.json" else json.loads(before) | {"features": features}))
    try:
        with pytest.raises(UserError) as refused:
            splits(str(folder))
    finally:
        path.write_text(before)
    assert str(path) in str(refused.value) and CLASS in str(refused.value) and "\n" not in str(refused.value)
    assert FOREIGN not in sys.modules and not (folder / "imported").exists()
    assert splits(str(folder)) == {"train": 1}


def test_a_module_in_the_current_folder_is_not_imported(folder):
    path = folder / "features.json"
    before = path.read_text()
    path.write_text(json.dumps(in_dict(MARK)))
    try:
        command = [sys.executable, "-c", OPEN, str(folder)]  # -c puts the current folder first on sys.path, as -m does
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    finally:
        path.write_text(before)
    assert done.returncode and f"UserError: {path} names" in done.stderr and not (folder / "imported").exists()


@pytest.mark.parametrize(
    "name", ["tensorflow_datasets.scripts.cli.main.main", "tensorflow_datasets.core.features.Image.x", "os.path", ""]
)
def test_other_modules_of_tfds_are_no_features(tmp_path, name):
    (tmp_path / "features.json").write_text(json.dumps({"pythonClassName": name}))
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="features.json"):
        check_feature_classes(str(tmp_path))


def test_all_features_that_tfds_writes_are_let_through(tmp_path):
    kinds = tfds.features
    nested = {
        "text": kinds.Text(),
        "label": kinds.ClassLabel(names=["cat"]),
        "boxes": kinds.Sequence({"box": kinds.BBoxFeature(), "number": kinds.Scalar(np.int64)}),
        "mask": kinds.LabeledImage(labels=["sky"], shape=(None, None, 1)),
        "words": kinds.Translation(["en", "de"]),
        "more": kinds.Dataset({"array": kinds.Tensor(shape=(2,), dtype=np.float32)}),
    }
    kinds.FeaturesDict(nested).save_config(str(tmp_path))
    (tmp_path / "dataset_info.json").write_text("{}")
    check_feature_classes(str(tmp_path))
    legacy = {"type": "tensorflow_datasets.core.features.feature.Tensor", "content": {"shape": [], "dtype": "int64"}}
    (tmp_path / "features.json").write_text(json.dumps({"type": DICT, "content": {"a": legacy}}))
    check_feature_classes(str(tmp_path))
