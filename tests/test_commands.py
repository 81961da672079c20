"""launch.train's door: bad input ends in one line that names the thing and the mend, and touches nothing."""

import json
from pathlib import Path
import re
import subprocess
import sys

import pytest

from configs import base
from launch.common import check_workdir
from tc_jepa import build
from tc_jepa.checkpoint import Checkpoints
from tc_jepa.errors import UserError
from tc_jepa.validate import validate

ROOT = Path(__file__).parent.parent


def launch(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.train", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/nope.py", "--workdir=x"], "--config=configs/nope.py: there is no such file"),
        (
            ["--config=configs/quickstart.py", "--workdir=x", "--config.train.stpes=3"],
            "did you mean --config.train.steps?",
        ),
        (
            ["--config=configs/quickstart.py", "--workdir=x", "--config.trian.steps=3"],
            "did you mean --config.train.steps?",
        ),
        (["--config=configs/quickstart.py", "--workdir=x", "steps=3"], "unexpected argument 'steps=3'"),
        (["--config=configs/quickstart.py"], "--workdir=DIR"),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(arguments, said):
    done = launch(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr


def test_a_config_file_that_sets_an_unknown_key_is_told_the_nearest(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs import base\ndef get_config():\n  c = base.get_config()\n  c.train.stpes = 3\n  return c\n"
    )
    done = launch(f"--config={path}", "--workdir=x")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "did you mean 'steps'?" in done.stderr


def test_help_explains_every_key():
    done = launch("--help")
    for key in base.KEYS:
        assert f"{key.name}=" in done.stdout and key.meaning in done.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"image.size": 225},
            "image.size=225 is not divisible by model.patch_size=16; the nearest sizes that are: 224 and 240",
        ),
        ({"model.encoder": "bse"}, "model.encoder='bse' is unknown; one of nano, tiny"),
        ({"model.conditioner": "words"}, "model.conditioner='words'"),
        ({"objective.prediction": "l1"}, "objective.prediction='l1'"),
        ({"model.predictor.width": 100}, "model.predictor.width=100 must be divisible"),
        ({"masking.kind": "block"}, "masking.kind='block' is unknown; one of fixed, official, random"),
        ({"masking.kind": "official", "masking.group_size": 0}, "masking.group_size=0"),
        (
            {"masking.kind": "official", "image.size": 128},
            "masking.kind=official would search for ever: a target block",
        ),
        ({"masking.kind": "random"}, "masking.target_blocks=4: masking.kind=random predicts all hidden patches"),
        ({"conditioner.layers": (5, 6)}, "conditioner.layers=(5, 6) must be different layers of the predictor, 0 to 5"),
        ({"conditioner.layers": (1, 1)}, "conditioner.layers=(1, 1)"),
        ({"conditioner.heads": 5}, "model.predictor.width=384 is not divisible by conditioner.heads=5"),
        ({"conditioner.fusion": "sum"}, "conditioner.fusion='sum' is unknown; one of max, mean, attention"),
        (
            {"model.conditioner": "none", "conditioner.heads": 2, "conditioner.fusion": "mean"},
            "conditioner.heads, conditioner.fusion would have no effect with model.conditioner=none",
        ),
        ({"model.conditioner": "adaln", "conditioner.layers": (0,)}, "conditioner.layers would have no effect"),
        ({"model.conditioner": "none", "captions.shuffled": True}, "captions.shuffled would have no effect"),
        ({"captions.shuffled": True, "train.batch_size": 1}, "train.batch_size of at least 2"),
        ({"data.scenes_level": "harder"}, "data.scenes_level='harder' is unknown; one of standard, hard"),
        ({"data.scenes_level": "hard", "data.path": "DATA"}, "data.scenes_level=hard would have no effect"),
        ({"evaluation.dense_examples": 0}, "evaluation.dense_examples=0 must be at least 1"),
        ({"objective.regulariser": "l1"}, "objective.regulariser='l1'"),
        ({"objective.temperature": 0.0}, "objective.temperature=0.0 must be positive"),
        ({"model.init": "zero"}, "model.init='zero'"),
        ({"model.text": "t5"}, "model.text=t5 and model.text_weights='' do not fit"),
        ({"model.text": "t5", "model.text_weights": "x", "model.text_dtype": "float16"}, "model.text_dtype='float16'"),
        (
            {"model.text": "t5", "model.text_weights": "x", "captions.vocabulary": "y"},
            "captions.vocabulary has no place beside model.text=t5",
        ),
        ({"target_encoder.kind": "frozen"}, "target_encoder.teacher='' do not fit"),
        ({"target_encoder.kind": "pixels"}, "target_encoder.kind=pixels is trained by objective.prediction=mse"),
        ({"train.steps": 0}, "train.steps=0 must be at least 1"),
        ({"objective.sparsity": -0.1}, "objective.sparsity=-0.1"),
        ({"captions.candidates": -1}, "captions.candidates=-1 must be at least 0"),
        ({"image.crop_scale": (0.5, 2.0)}, "image.crop_scale=(0.5, 2.0)"),
        ({"image.crop_scale": (0.5,)}, "image.crop_scale=(0.5,)"),
        ({"target_encoder.start_momentum": 1.5}, "target_encoder.start_momentum=1.5"),
        ({"image.size": 64, "masking.context_tokens": 10, "masking.min_context": 14}, "masking.context_tokens=10"),
        (
            {"image.size": 48, "masking.context_tokens": 9, "masking.min_context": 8},
            "leaves fewer than masking.min_context=8",
        ),
    ],
)
def test_keys_that_cannot_go_together_are_named(changes, said):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as refused:
        validate(config)
    assert said in str(refused.value)


def test_data_that_is_not_there_is_refused_rather_than_replaced_by_scenes(tmp_path):
    config = base.get_config()
    config.data.path = str(tmp_path / "photos")
    with pytest.raises(UserError, match="photos is no folder"):
        build.source(config, "train")


def test_a_workdir_of_another_experiment_is_refused(tmp_path):
    config = base.get_config()
    check_workdir(tmp_path, config)  # an empty directory is fine
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.mesh.fsdp, config.data.workers = 4, 2
    check_workdir(tmp_path, config)
    config.train.seed, config.image.crop_scale = 7, (0.5, 1.0)
    with pytest.raises(UserError) as refused:
        check_workdir(tmp_path, config)
    assert "train.seed (there 0, here 7)" in str(refused.value)
    assert "image.crop_scale (there (0.3, 1.0), here (0.5, 1.0))" in str(refused.value)
    assert "mesh" not in str(refused.value)


def test_checkpoints_without_their_config_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.json"):
        check_workdir(tmp_path, base.get_config())


@pytest.mark.parametrize("name", ["lr[0.1]", "a*", "a?", "a\\b"])
def test_a_workdir_whose_checkpoints_could_not_be_restored_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / name)
    for workdir in (tmp_path / name / "run", tmp_path / "link" / "run"):
        with pytest.raises(UserError, match=re.escape(name)):
            check_workdir(workdir, base.get_config())
        with pytest.raises(UserError, match=re.escape(name)):
            Checkpoints(workdir, keep=1)
        assert not workdir.exists()


def test_a_workdir_with_other_punctuation_is_accepted(tmp_path):
    check_workdir(tmp_path / "a] b{c,d}!#%é", base.get_config())
