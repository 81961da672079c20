"""Tasks on the way are scored on examples that are neither tested on later nor fitted on."""

import numpy as np
from PIL import Image
import pytest

from configs import base
from tc_jepa.data.prepare.trees import prepare_imagefolder
from tc_jepa.data.sources import TEST
from tc_jepa.errors import UserError
from tc_jepa.monitoring import tasks


def config_of(**changes):
    config = base.get_config()
    config.update_from_flattened_dict({"image.size": 32, "data.train_scenes": 40, "train.eval_tasks": "knn"} | changes)
    return config


def prepared(folder, **counts):
    """A prepared folder with so many images of each split."""
    for split, count in counts.items():
        for number in range(count):
            path = folder / "tree" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    prepare_imagefolder(str(folder / "tree"), str(folder / "data"))
    return str(folder / "data")


def files(source):
    return {source.file(index) for index in range(len(source))}


def splits_of(names):
    return {name.partition("/")[0] for name in names}


@pytest.mark.parametrize("asked", ["", TEST])
def test_val_is_scored_where_there_is_one(tmp_path, asked):
    path = prepared(tmp_path, train=10, val=4, test=4)
    for data in ({"data.path": path}, {}):
        fitted, scored = tasks.held_out(config_of(**data, **{"evaluation.test_split": asked}))
        assert scored.file(0).startswith("val/") and fitted.file(0).startswith("train/")


def test_without_val_a_fifth_of_train_is_scored_that_is_not_fitted_on(tmp_path, caplog):
    config = config_of(**{"data.path": prepared(tmp_path, train=20, test=4)})
    with caplog.at_level("WARNING", logger="absl"):
        fitted, scored = tasks.held_out(config)
    assert "train.eval_tasks" in caplog.text
    assert splits_of(files(fitted) | files(scored)) == {"train"}
    assert (len(fitted), len(scored)) == (16, 4) and len(files(fitted) | files(scored)) == 20
    assert dict(fitted.tasks) == dict(scored.tasks) != {}
    for source in (fitted, scored):
        for index in range(len(source)):  # image, label and name are of the same example
            number = int(source.file(index).rpartition("/")[2].partition(".")[0])
            assert source[index].image[0, 0, 0] == number and source.labels(index) == {"label": number % 2}
    for one, other in zip(tasks.held_out(config), (fitted, scored)):
        assert files(one) == files(other)


def test_too_few_train_images_to_hold_some_out_are_refused(tmp_path):
    with pytest.raises(UserError, match="data has no split val"):
        tasks.task_monitor(config_of(**{"data.path": prepared(tmp_path, train=4, test=4)}))


def test_the_tasks_read_what_is_held_out(monkeypatch):
    """And nothing of the split test."""
    read = []
    monkeypatch.setattr(tasks, "frozen_vit", lambda *_, **__: None)

    class Scored:
        scores = {"knn/shape": 0.5, "knn/shape_low": 0.4}

    def evaluate(frozen, others, train, test, tasks, **sizes):
        read.append((train.split, test.split, tasks))
        return Scored

    monkeypatch.setattr(tasks, "evaluate", evaluate)
    assert tasks.task_monitor(config_of())({"a": np.zeros(1)}) == {"eval/knn/shape": 0.5}
    assert read == [("train", "val", ["knn"])]
