"""launch.train: bad input ends in one line that says what is wrong and how to fix it, and nothing is written."""

import json
import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

from configs import base, paper
from launch.common import check_workdir
from tc_jepa.config import data as config_data
from tc_jepa.config.validate import validate
from tc_jepa.errors import UserError
from tc_jepa.storage import files
from tc_jepa.storage.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(p.stem for p in (ROOT / "launch").glob("*.py") if "common.run(" in p.read_text())
PATH_KEYS = (
    "train.init_from",
    "data.path",
    "captions.vocabulary",
    "captions.vectors",
    "model.text_weights",
    "target_encoder.teacher",
    "evaluation.data",
    "evaluation.vocabulary",
)
# Flags that take any text and are no paths. A new flag is one of these or common.define_path's.
TEXTS = {
    *("caption", "word", "split", "splits", "tasks", "features", "image_feature", "label_features", "caption_features"),
    *(
        "description_features",
        "caption_fields",
        "description_fields",
        "from",
        "to",
        "network",
        "set",
        "distributed",
        "topology",
        "only",
        "metrics",
        "short",
        "detailed",
    ),
}


def launch(*arguments: str, command: str = "train", home: Path | None = None) -> subprocess.CompletedProcess:
    """Runs a command from the project's root; or in `home`, which is the home folder as well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"HOME": str(home)} if home else {})
    return subprocess.run(
        [sys.executable, "-m", f"launch.{command}", *arguments],
        cwd=home or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/nope.py", "--workdir=x"], "--config=configs/nope.py"),
        (
            ["--config=configs/scenes_standard.py", "--workdir=x", "--config.train.stpes=3"],
            "did you mean --config.train.steps?",
        ),
        (
            ["--config=configs/scenes_standard.py", "--workdir=x", "--config.trian.steps=3"],
            "did you mean --config.train.steps?",
        ),
        (["--config=configs/scenes_standard.py", "--workdir=x", "steps=3"], "unexpected argument 'steps=3'"),
        (["--config=configs/scenes_standard.py"], "--workdir"),
        (["--config=configs/scenes_standard.py", "--config.optimizer.beta1=2.0", "--workdir=x"], "optimizer.beta1=2.0"),
        (
            ["--config=configs/scenes_standard.py", "--config.masking.group_size=2", "--workdir=x"],
            "masking.group_size=2",
        ),
        (
            ["--config=configs/quickstart.py:student", "--teacher=configs/nope.py", "--workdir=x"],
            "--teacher=configs/no",
        ),
        (
            ["--config=configs/quickstart.py", "--teacher=configs/quickstart.py", "--workdir=x"],
            "--config.target_encoder.kind=frozen",
        ),
        (
            ["--config=configs/quickstart.py:student", "--teacher=configs/quickstart.py"]
            + ["--teacher.train.stpes=3", "--workdir=x"],
            "did you mean --teacher.train.steps?",
        ),
        (["--config=configs/paper.py:vit", "--workdir=x"], "configs/paper.py:vit"),
        (["--config=configs/quickstart.py:pupil", "--workdir=x"], "configs/quickstart.py:pupil"),
        (["--config=configs/paper.py", "--workdir=x"], "one of ijepa_in1k_b16"),
        (["--config=configs/paper.py:tc_jepa_in1k_b16", "--workdir=x"], "model.text_weights"),
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
        assert f"{key.name}=" in done.stdout and f"{key.meaning}; {key.allowed}".strip("; ") in done.stdout


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"image.size": 225}, "image.size"),
        ({"model.predictor.width": 100}, "model.predictor.width"),
        ({"conditioner.layers": (5, 6)}, "conditioner.layers"),
        ({"conditioner.layers": (1, 1)}, "conditioner.layers"),
        ({"conditioner.heads": 5}, "conditioner.heads"),
        ({"captions.shuffled": True, "train.batch_size": 1}, "train.batch_size"),
        ({"model.text": "t5"}, "model.text_weights"),
        ({"target_encoder.kind": "frozen"}, "target_encoder.teacher"),
        ({"target_encoder.kind": "pixels"}, "objective.prediction"),
    ],
)
def test_keys_that_cannot_go_together_are_named(changes, about):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    base.KEYS.check(config, changes)
    with pytest.raises(UserError) as refused:
        validate(config)
    assert refused.value.about == about and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"masking.kind": "official", "image.size": 128}, "masking.kind"),
        ({"masking.kind": "random"}, "masking.target_blocks"),
        ({"image.size": 64, "masking.context_tokens": 10, "masking.min_context": 14}, "masking.context_tokens"),
        ({"image.size": 48, "masking.context_tokens": 9, "masking.min_context": 8}, "masking.min_context"),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused(changes, named):
    config = base.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=named):
        validate(config)


def test_without_words_their_settings_are_not_checked():
    config = paper.get_config("tc_jepa_in1k_b16")  # text=t5, whose folder the user would give
    config.model.conditioner = "none"
    validate(config)


def test_data_that_is_not_there_is_refused_rather_than_replaced_by_scenes(tmp_path):
    config = base.get_config()
    config.data.path = str(tmp_path / "photos")
    with pytest.raises(UserError, match="photos is not a folder"):
        config_data.source(config, "train")


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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_flag_refuses_a_url(command):
    code = f"""
from absl import flags
from launch import {command}
from tc_jepa.errors import UserError

for flag in flags.FLAGS.get_key_flags_for_module({command}):
    try:
        flag.parser.parse("s3://bucket/x")
        print(flag.name)
    except ValueError:  # a number or one of several names
        pass
    except UserError as error:
        assert f"--{{flag.name}}=s3:" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= TEXTS | {"config", "teacher"}  # they are opened later


@pytest.mark.parametrize(
    ("command", "arguments", "named"),
    [
        ("train", ["--config=mine.py", "--workdir=s3://bucket/run"], "--workdir"),
        ("train", ["--config=gs://bucket/mine.py", "--workdir=run"], "--config"),
        ("train", ["--config=mine.py", "--workdir=run", "--config.data.path=/a,s3://bucket/b"], "data.path"),
        ("train", ["--config=mine.py", "--workdir=~nobody-of-this-name/run"], "--workdir"),
        ("prepare_data", ["--source=tars", "--input=val:gs://bucket/*.tar", "--output=data"], "--input"),
        ("show", ["--what=pca", "--encoder=run", "--image=a.jpg,gs://bucket/b.jpg", "--output=x.png"], "--image"),
    ],
)
def test_a_url_is_refused_before_anything_is_written(tmp_path, command, arguments, named):
    (tmp_path / "mine.py").write_text("from configs.scenes_standard import get_config")
    done = launch(*arguments, command=command, home=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {named}=") and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_tilde_is_the_home_folder(tmp_path):
    lines = [{"file": f"{i}.png", "captions": ["a dog"], "split": "val"} for i in range(4)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = launch(
        "--captions=~/captions.jsonl", "--output=~/probe.jsonl", "--count=1", command="word_labels", home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "probe.jsonl"]


@pytest.mark.parametrize("written", [["--config=~/mine.py"], ["--config", "~/mine.py"]])
def test_a_tilde_is_the_home_folder_in_config(tmp_path, written):
    (tmp_path / "mine.py").write_text("from configs.scenes_standard import get_config")
    done = launch(*written, "--config.data.path=~/photos", "--workdir=run", command="train", home=tmp_path)
    assert done.returncode == 2 and f"{tmp_path}/photos" in done.stderr and not (tmp_path / "run").exists()


def test_patterns_of_tars_are_expanded_after_their_split():
    code = """
from absl import flags
import launch.prepare_data

for given in ("val:~/x/*.tar", "~/x/*.tar", "./a:~/x/*.tar"):
    print(flags.FLAGS["input"].parser.parse(given))
"""
    environment = os.environ | {"HOME": "/home/me"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["val:/home/me/x/*.tar", "/home/me/x/*.tar", "./a:~/x/*.tar"]


@pytest.mark.parametrize("name", PATH_KEYS)
def test_paths_of_a_configuration_are_expanded(name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = base.get_config()
    config.update_from_flattened_dict({name: "~/a,/b,~/c"})
    base.expand_paths(config)
    assert base.flatten(config)[name] == "/home/me/a,/b,/home/me/c"
    config.update_from_flattened_dict({name: "s3://bucket/a"})
    with pytest.raises(UserError, match=f"^{name}=s3://bucket/a "):
        base.expand_paths(config)


@pytest.mark.parametrize("name", PATH_KEYS)
def test_only_workdirs_of_a_configuration_may_be_in_a_bucket(name, monkeypatch):
    monkeypatch.setattr(files, "BUCKET_PACKAGES", ())
    config = base.get_config()
    config.update_from_flattened_dict({name: "gs://bucket/a"})
    if name in base.WORKDIR_KEYS:
        base.expand_paths(config)
        assert base.flatten(config)[name] == "gs://bucket/a"
    else:
        with pytest.raises(UserError, match=f"^{name}=gs://bucket/a "):
            base.expand_paths(config)


def test_a_bucket_needs_packages_and_another_store_is_refused(monkeypatch):
    for packages, given in ((("nothing.of_this_name",), "gs://bucket/a"), ((), "s3://bucket/a")):
        monkeypatch.setattr(files, "BUCKET_PACKAGES", packages)
        with pytest.raises(UserError) as refused:
            files.workdir_path(given, "--workdir")
        assert refused.value.about == "workdir"
    assert files.workdir_path("gs://bucket/a/", "--workdir") == "gs://bucket/a"


def test_only_paths_of_a_configuration_are_expanded():
    assert {key.name for key in base.KEYS if key.path} == set(PATH_KEYS)
    config = base.get_config()
    base.expand_paths(config)
    assert config == base.get_config()
