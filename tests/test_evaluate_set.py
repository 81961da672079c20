"""The data that is judged on: other data's features have other names, and launch.evaluate --set says which."""

import json
from pathlib import Path

from absl import flags
from absl.testing import flagsaver
import ml_collections
import pytest

from configs import base
from launch import evaluate as launch_evaluate
from tc_jepa.config import data as config_data
from tc_jepa.data.prepared import FeatureNames
from tc_jepa.data.scenes.source import HELD_OUT_SCENES, SceneSource
from tc_jepa.data.sources import SCENES
from tc_jepa.errors import UserError
from tests.test_writing import Mute, Seen


@pytest.fixture(autouse=True)
def flags_are_parsed():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def set_keys(config, *texts: str) -> None:
    with flagsaver.flagsaver(set=texts):
        launch_evaluate.set_keys(config)


def test_features_and_the_split_to_test_on_are_set():
    config = base.get_config()
    config.data.path = "DATA"
    set_keys(config, "data.mask_feature=seg", "data.label_features=('coarse',)", "evaluation.test_split=val")
    assert config_data.features(config) == FeatureNames(labels=("coarse",), mask="seg")
    assert config.evaluation.test_split == "val"


@pytest.fixture(params=[False, True], ids=["new", "read from a workdir"])
def config(request):
    """Of a run on two folders whose features have names of their own."""
    config = base.get_config()
    own = {"image_feature": "jpg", "caption_features": ("title",), "description_features": ("long",)}
    own |= {"label_features": ("coarse",), "mask_feature": "seg", "scenes_level": "hard", "scenes_seed": 3}
    config.data.update({"path": "data/a,data/b"} | own)
    return ml_collections.ConfigDict(json.loads(config.to_json())) if request.param else config


@pytest.mark.parametrize("folder", ["data/b", "data/a/", str(Path("data/b").resolve()), ""])
def test_the_runs_own_folders_keep_the_names_of_their_features(config, folder):
    found = config_data.on_data(config, folder)
    names = FeatureNames("jpg", ("title",), ("long",), ("coarse",), "seg")
    assert config_data.features(found) == config_data.features(config) == names
    assert found.data.path == (folder or "data/a,data/b")


def test_other_data_has_the_usual_names_and_scenes_are_the_runs(config):
    other, scenes = config_data.on_data(config, "data/c"), config_data.on_data(config, SCENES)
    assert config_data.features(other) == config_data.features(scenes) == FeatureNames()
    assert other.data.path == "data/c" and config.data.path == "data/a,data/b"
    source = config_data.source(scenes, "test")
    assert source == SceneSource(3, "test", HELD_OUT_SCENES, config.image.size, "hard")
    set_keys(other, "data.label_features=('fine',)")
    assert config_data.features(other).labels == ("fine",)


def test_a_path_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = base.get_config()
    set_keys(config, "evaluation.vocabulary=~/spiece.model")
    assert config.evaluation.vocabulary == "/home/me/spiece.model"


@pytest.mark.parametrize(
    ("train", "test", "chosen"),
    [
        (Seen, Seen, ["retrieval", "captioning", "vqa", "rank"]),
        (Mute, Seen, ["retrieval", "rank"]),  # nothing is fitted for retrieval
        (Seen, Mute, ["rank"]),
    ],
)
def test_tasks_of_texts_are_left_out_where_a_split_that_they_read_has_none(train, test, chosen):
    config = base.get_config()
    config.method.name, config.evaluation.tasks = "contrastive", "retrieval,captioning,vqa,rank"
    assert launch_evaluate.choose_tasks(config, train(), test(), is_run=True, other_size=False) == chosen


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model.encoder=tiny", "model.encoder"),
        ("data.path=x", "--data"),
        ("data.mask_feture=x", "data.mask_feature?"),
        ("data.mask_feature=x", "--set=data.mask_feature=x"),
    ],
)
def test_what_cannot_be_set_is_refused(text, named):
    with pytest.raises(UserError) as error:
        set_keys(base.get_config(), text)
    assert named in str(error.value)
