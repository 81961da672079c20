"""A run is resumed with the data that it began with, wherever that lies, and with no other."""

import json
from pathlib import Path
import shutil

import pytest
import tensorflow_datasets as tfds

from launch.common import check_workdir
from tc_jepa import train
from tc_jepa.config import data as config_data
from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.prepared import PreparedDataset
from tc_jepa.errors import UserError
from tc_jepa.storage.run_data import check_data, DATA_FILE, difference, Held, record_data, recorded
from tests import tiny
from tests.preparing import PHOTO_LINES, PHOTOS
from tests.test_prepared import write
from tests.test_train import mite, tiny_config  # noqa: F401 - mite is a fixture

FEATURES = {"image": tfds.features.Image(), "captions": tfds.features.Sequence(tfds.features.Text())}


def write_data(folder: Path, images: int) -> str:
    folder.mkdir()
    photos = [(PHOTOS / line["file"]).read_bytes() for line in PHOTO_LINES[:images]]
    write(folder, FEATURES, [{"image": photo, "captions": [f"photo {i}"]} for i, photo in enumerate(photos)])
    shutil.copy(scenes_vocabulary_path(), folder / "vocabulary.model")
    return str(folder)


def config_of(data: str, **changes):
    return tiny_config(**{"data.path": data} | changes)


def begun(workdir: Path, config, *, saved: bool = True) -> Path:
    """What a run of this configuration leaves in its workdir, without the training."""
    (workdir / "checkpoints" / "3").mkdir(parents=True) if saved else workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    record_data(workdir, config_data.run_data(config, []), resumed=False)
    return workdir


def test_a_run_records_its_data_before_it_trains(tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def stop(*_):
        raise Reached

    monkeypatch.setattr(train, "open_checkpoints", stop)
    config = config_of(write_data(tmp_path / "data", 8))
    with pytest.raises(Reached):
        tiny.train(config, tmp_path / "run")
    assert recorded(tmp_path / "run") == {"data.path": [PreparedDataset(config.data.path).identity()]}


@pytest.mark.parametrize("key", ["data.path", "captions.vocabulary", "model.text_weights"])
def test_moved_data_goes_on_and_other_data_does_not(tmp_path, key):
    paths = {"data.path": write_data(tmp_path / "data", 4)}
    if key == "captions.vocabulary":
        paths[key] = str(shutil.copy(scenes_vocabulary_path(), tmp_path / "v.model"))
    if key == "model.text_weights":
        paths[key] = str(tiny.t5_folder(tmp_path / "t5"))
    config = tiny_config(**paths, **({"model.text": "t5"} if key == "model.text_weights" else {}))
    workdir = begun(tmp_path / "run", config)
    moved = shutil.move(paths[key], tmp_path / "moved")
    config.update_from_flattened_dict({key: str(moved)})
    check_workdir(workdir, config)
    if key == "captions.vocabulary":
        (tmp_path / "moved").write_bytes(b"x")
    else:
        shutil.rmtree(tmp_path / "moved")
        write_data(tmp_path / "moved", 3) if key == "data.path" else tiny.t5_folder(tmp_path / "moved", seed=1)
    with pytest.raises(UserError, match=rf"{key}={tmp_path}/moved: .*was .*, is "):
        check_workdir(workdir, config)
    config.train.seed = 1
    with pytest.raises(UserError, match=r"experiment: train\.seed \(there 0, here 1\); "):
        check_workdir(workdir, config)


def test_data_that_shrank_in_its_place_is_refused_before_anything_is_written(tmp_path):
    config = config_of(write_data(tmp_path / "data", 4))
    workdir = begun(tmp_path / "run", config)
    shutil.rmtree(tmp_path / "data")
    write_data(tmp_path / "data", 3)
    before = sorted(workdir.rglob("*"))
    check_workdir(workdir, config)
    with pytest.raises(UserError, match=rf"data\.path={tmp_path}/data: splits: train: images was 4, is 3; restore"):
        tiny.train(config, workdir)
    assert sorted(workdir.rglob("*")) == before


def test_datasets_are_compared_one_by_one(tmp_path):
    one, two = write_data(tmp_path / "one", 2), write_data(tmp_path / "two", 3)
    workdir = begun(tmp_path / "run", config_of(f"{one},{two}"))
    for other in (f"{two},{one}", one, f"{one},{two},{two}", ""):
        with pytest.raises(UserError, match=r"data\.path"):
            check_workdir(workdir, config_of(other))


def test_a_run_without_a_record_of_its_data_may_not_move(tmp_path):
    data = write_data(tmp_path / "data", 2)
    workdir = begun(tmp_path / "run", config_of(data))
    (workdir / DATA_FILE).unlink()
    with pytest.raises(UserError, match=r"another experiment: data\.path"):
        check_workdir(workdir, config_of(shutil.move(data, str(tmp_path / "moved"))))


def test_a_resumed_run_without_a_record_gets_one_and_logs_it_once(tmp_path, caplog):
    found = {"data.path": [Held("x", {"splits": {}})]}
    with caplog.at_level("WARNING", logger="absl"):
        record_data(tmp_path, {}, resumed=True)
        assert not (tmp_path / DATA_FILE).exists()  # scenes
        for _ in range(2):
            record_data(tmp_path, found, resumed=True)
            check_data(tmp_path, found)
    assert [record.getMessage().count("data.path") for record in caplog.records] == [1]
    assert recorded(tmp_path) == {"data.path": [{"splits": {}}]}


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / DATA_FILE).write_text(content)
    with pytest.raises(UserError, match=DATA_FILE):
        recorded(tmp_path)


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, None),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "it: a: c was 2, is 3"),
        ({"a": {"b": 1}}, {"a": None}, "it: a was present, is absent"),
        ({}, {"a": 1}, "it: a was absent, is 1"),
        ("0" * 64, "1" * 64, f"it was {'0' * 12}, is {'1' * 12}"),
    ],
)
def test_the_first_difference_is_named(was, now, expected):
    assert difference(was, now, "it") == expected
