"""The table of datasets: names and folders open as the same kind of thing."""

import json

import pytest

from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.datasets import DatasetOptions, open_dataset
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.data.scenes.source import HELD_OUT_SCENES, ScenesDataset
from tc_jepa.errors import UserError

OPTIONS = DatasetOptions(scenes=ScenesDataset(16, 9, seed=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("data") / "stored")
    prepare_scenes(9, path, seed=3, size=16)
    return path


@pytest.mark.parametrize("name", ["", "scenes"])
def test_drawn_and_stored_scenes_open_alike(folder, name):
    drawn, stored = open_dataset(name, OPTIONS), open_dataset(folder)
    assert (drawn.name, stored.name) == ("scenes", folder)
    assert drawn.splits() == {"train": 9, "val": HELD_OUT_SCENES, "test": HELD_OUT_SCENES}
    assert stored.splits() == {"train": 9, "val": 1, "test": 1}
    one, other = drawn.open("train"), stored.open("train")
    assert len(one) == len(other) == 9 and one.tasks == other.tasks and one[4].captions == other[4].captions
    with open(drawn.vocabulary_path(), "rb") as ours, open(stored.vocabulary_path(), "rb") as theirs:
        assert ours.read() == theirs.read()
    assert drawn.vocabulary_path() == scenes_vocabulary_path()


def test_options_reach_the_dataset_that_uses_them(folder):
    assert len(open_dataset("", OPTIONS).open("val").tasks["count"].classes) == 5
    hard = open_dataset("", DatasetOptions(scenes=ScenesDataset(24, level="hard"))).open("val")
    assert len(hard.tasks["count"].classes) == 8 and hard[0].image.shape == (24, 24, 3)


@pytest.mark.parametrize("dataset", ["scenes", "stored"])
def test_a_missing_split_is_refused(folder, dataset):
    with pytest.raises(UserError, match="'dev'"):
        open_dataset(folder if dataset == "stored" else dataset, OPTIONS).open("dev")


def test_identities_tell_datasets_apart(folder):
    datasets = [
        open_dataset(folder),
        open_dataset("", OPTIONS),
        open_dataset("", DatasetOptions(scenes=ScenesDataset(16, 9, seed=4))),
        open_dataset("", DatasetOptions(scenes=ScenesDataset(16, 8, seed=3))),
    ]
    assert len({json.dumps(dataset.identity()) for dataset in datasets}) == 4
    assert open_dataset(folder).identity() == open_dataset(folder).identity()
