"""Workdirs: those that older versions wrote stay usable, and unfinished checkpoints are not read."""

import json
from pathlib import Path
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs.keys import flatten
from launch import common
import tc_jepa
from tc_jepa.errors import UserError
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.experiment.run import open_run
from tc_jepa.experiment.warm_start import warm_start
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.storage.checkpoint import chosen_step, CONFIG_FILE, saved_steps
from tests import tiny
from tests.test_train import lines, mite, tiny_config  # noqa: F401 - mite is a fixture

# The configuration of a run, with all the keys that commit 08567d1 knew and none that was declared since.
OLD_CONFIG = Path(__file__).parent / "fixtures" / "config_08567d1.json"


@pytest.fixture(scope="module")
def old_run(mite, tmp_path_factory):  # noqa: F811
    """A workdir as commit 08567d1 left it: an old config.json, metrics and checkpoints, and no other file."""
    workdir = tmp_path_factory.mktemp("old") / "run"
    workdir.mkdir()
    shutil.copy(OLD_CONFIG, workdir / CONFIG_FILE)
    tiny.train(common.run_config(workdir), workdir)
    for path in workdir.iterdir():
        if path.is_file() and path.name != "metrics.jsonl":
            path.unlink()
    shutil.copy(OLD_CONFIG, workdir / CONFIG_FILE)
    return workdir


def test_an_old_configuration_is_completed(old_run):
    stored = flatten(json.loads(OLD_CONFIG.read_text())) | {"target_encoder.normalise": "layer"}  # then it was True
    config = flatten(common.run_config(old_run))
    assert {name: config[name] for name in stored} == stored
    assert config["method.name"] == "jepa" and "lejepa.views" in config


def test_an_old_run_resumes_as_if_it_had_never_stopped(old_run, tmp_path):
    workdir = Path(shutil.copytree(old_run, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "2")
    config = common.run_config(workdir)
    common.check_workdir(workdir, config)
    tiny.train(config, workdir)
    assert lines(workdir) == lines(old_run)
    config.train.seed = 1
    with pytest.raises(UserError) as refused:
        common.check_workdir(workdir, config)
    assert refused.value.about == "train.seed"


def test_an_old_run_is_opened_and_its_encoders_are_loaded(old_run):
    opened = open_run(old_run, common.run_config(old_run))
    assert opened.step == 2 and opened.params.keys() == {"encoder", "predictor", "text"}
    jax.tree.map(np.testing.assert_array_equal, opened.evaluation_encoder(), pretrained.open_encoder(old_run).params)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    assert tc_jepa.load_encoder(old_run)(images).shape == (1, 16, 32)
    assert tc_jepa.load_text_encoder(old_run)("a red circle").shape == (10, 8)


def test_a_new_run_starts_from_an_old_one(old_run):
    config = tiny_config(**{"train.init_from": str(old_run)})
    experiment = build_experiment(config)
    trained = jax.eval_shape(experiment.initial_state, experiment.frozen).params
    start = warm_start(config, trained, experiment.reader)
    assert start.params.keys() == trained.keys() and "fresh, because" not in start.report


def test_a_configuration_of_an_unknown_version_is_refused(old_run, tmp_path):
    config = json.loads(OLD_CONFIG.read_text())
    del config["model"]["patch_size"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(UserError, match="patch_size"):
        tc_jepa.load_encoder(tmp_path)
    with pytest.raises(UserError) as refused:
        common.run_config(tmp_path)
    assert refused.value.about == "model.patch_size"


@pytest.mark.parametrize("marked", [False, True])
def test_an_unfinished_checkpoint_is_not_a_step(tmp_path, monkeypatch, marked):
    folder = tmp_path / "checkpoints"
    for name in ("3", "12", "20", "21.orbax-checkpoint-tmp", "022"):
        (folder / name).mkdir(parents=True)
    (folder / "30").write_text("a file")
    for step in ("3", "12"):
        (folder / step / "commit_success.txt").touch()
    if marked:  # as on an object store, whose folders cannot be renamed
        paths = "orbax.checkpoint._src.path.atomicity_defaults.get_default_temporary_path_class"
        monkeypatch.setattr(paths, lambda *_, **__: ocp.path.atomicity.CommitFileTemporaryPath)
    assert saved_steps(tmp_path) == ([3, 12] if marked else [3, 12, 20])
    assert saved_steps(tmp_path / "nowhere") == []
    assert chosen_step(tmp_path, None) == saved_steps(tmp_path)[-1]
    with pytest.raises(UserError) as refused:
        chosen_step(tmp_path, 21)
    assert refused.value.about == "step"
