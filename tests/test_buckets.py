"""Runs in a bucket of Cloud Storage, with the clients' own code, against the server of object_store.py."""

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from absl import logging
import numpy as np
import pytest

pytest.importorskip("gcsfs", reason="runs in a bucket need: pip install gcsfs google-cloud-storage")
pytest.importorskip("google.cloud.storage", reason="runs in a bucket need: pip install gcsfs google-cloud-storage")

from launch import common  # noqa: E402
import tc_jepa  # noqa: E402
from tc_jepa.errors import UserError  # noqa: E402
from tc_jepa.storage import files  # noqa: E402
from tc_jepa.storage.checkpoint import saved_steps  # noqa: E402
from tc_jepa.storage.files import as_path, GrowingFile  # noqa: E402
from tests import object_store, tiny  # noqa: E402
from tests.test_processes import start, statuses  # noqa: E402
from tests.test_train import interrupt_after, lines, mite, tiny_config  # noqa: E402, F401 - mite is a fixture

pytestmark = pytest.mark.slow  # the packages are not among those of the fast suite
ROOT = Path(__file__).parent.parent
RUN = f"gs://{object_store.BUCKET}/runs/a"
STEPS = {"train.steps": 4, "train.checkpoint_every": 2, "train.eval_every": 4, "train.keep_checkpoints": 1}


@pytest.fixture(scope="module")
def store():
    """The clients read the variables once a process, so there is one server for all tests."""
    with object_store.serving() as (store, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """A local run of four steps, and one in the bucket that was stopped after two and resumed."""
    local = tmp_path_factory.mktemp("local")
    tiny.train(tiny_config(**STEPS), local)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(SystemExit) as stopped:
            tiny.train(tiny_config(**STEPS), as_path(RUN))
    assert stopped.value.code == 128 + signal.SIGTERM and saved_steps(as_path(RUN)) == [2]
    tiny.train(tiny_config(**STEPS), as_path(RUN))
    return local, as_path(RUN)


def test_a_run_in_a_bucket_is_resumed_and_equals_a_local_one(runs, store):
    local, remote = runs
    assert lines(remote) == lines(local) and [row["step"] for row in lines(remote)] == [0, 1, 2, 3, 4]
    # The newest, and the one before, in case step 4 is a fall of the features.
    assert saved_steps(remote) == saved_steps(local) == [2, 4]
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    ours, theirs = tc_jepa.load_encoder(RUN), tc_jepa.load_encoder(local)
    np.testing.assert_array_equal(ours(images), theirs(images))
    assert not any(name.endswith(".tmp") or "lock" in name for name in store.objects)
    assert any("tensorboard/events" in name for name in store.objects)
    # What was logged is in the bucket before the checkpoint from which a resume would go on.
    written = [name.removeprefix("runs/a/").split("/")[0] for name in store.writes]
    assert written.index("metrics.jsonl") < written.index("checkpoints")


def test_a_workdir_in_a_bucket_belongs_to_its_experiment(runs):
    _, remote = runs
    common.check_workdir(remote, tiny_config(**STEPS))
    with pytest.raises(UserError) as refused:
        common.check_workdir(remote, tiny_config(**STEPS | {"train.steps": 9}))
    assert refused.value.about == "train.steps"


def test_a_run_starts_from_weights_in_a_bucket(runs, tmp_path, capsys):
    tiny.train(tiny_config(**STEPS | {"train.steps": 1, "train.init_from": RUN}), tmp_path)
    assert f"warm start from {RUN}" in capsys.readouterr().out


def test_of_a_bucket_only_workdirs_are_read(store):
    (as_path(RUN).parent / "weights" / "config.json").write_text(json.dumps({"format": "tc_jepa"}))
    with pytest.raises(UserError, match="runs/weights"):
        tc_jepa.load_encoder(f"gs://{object_store.BUCKET}/runs/weights")
    with pytest.raises(UserError, match="runs/nothing"):
        tc_jepa.load_encoder(f"gs://{object_store.BUCKET}/runs/nothing")


def test_a_bucket_has_no_locks_and_says_so(store, caplog):
    with caplog.at_level(logging.WARNING):
        files.held(as_path(RUN) / "a.lock").close()
    assert RUN in caplog.text and "runs/a/a.lock" not in store.objects
    files.refuse_held(as_path(RUN) / "a.lock")


def test_a_file_in_a_bucket_grows_by_being_written_again(store, monkeypatch):
    path, name = as_path(f"gs://{object_store.BUCKET}/log"), "log"
    file = GrowingFile(path)
    file.write("a\n")
    assert name not in store.objects
    file.sync()
    assert store.objects[name].content == b"a\n"
    monkeypatch.setattr(files, "BUCKET_INTERVAL", 0)
    file.write("b\n")
    assert store.objects[name].content == b"a\nb\n"
    file.close()
    again = GrowingFile(path)
    again.write("c\n")
    again.close()
    assert store.objects[name].content == b"a\nb\nc\n"


def command(name: str, *flags: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *flags], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_read_and_write_a_run_in_a_bucket(store, tmp_path):
    run = f"gs://{object_store.BUCKET}/runs/commands"
    sizes = tiny.SMALL_RUN | STEPS | {"data.train_scenes": 40, "evaluation.batch_size": 20}
    sizes |= {f"evaluation.{name}_examples": 60 for name in ("train", "test", "dense")}
    keys = [f"--config.{name}={value}" for name, value in sizes.items()]
    command("train", "--config=configs/scenes_standard.py", f"--workdir={run}", *keys)
    command("evaluate", f"--encoder={run}", "--tasks=knn,rank")
    command("report", f"--workdir={run}")
    assert b"knn" in store.objects["runs/commands/report/index.html"].content
    assert {"results.json", "results.md"} <= {path.name for path in as_path(f"{run}/eval/4").iterdir()}
    command("convert", "--to=hf_ijepa", f"--input={run}", f"--output={tmp_path / 'published'}")
    assert (tmp_path / "published" / "config.json").exists()
    image = next((ROOT / "tests/fixtures/photos/images").glob("*.jpg"))
    command("show", "--what=pca", f"--encoder={run}", f"--image={image}", f"--output={tmp_path / 'pca.png'}")


def test_two_processes_train_in_a_bucket_and_stop_together_when_all_get_sigterm(store):
    """As Slurm and Kubernetes stop a job: every process gets the signal."""
    run, log = f"gs://{object_store.BUCKET}/runs/two", "runs/two/metrics.jsonl"
    rare = {f"train.{name}": 10_000 for name in ("steps", "checkpoint_every", "eval_every")}
    sizes = tiny.SMALL_RUN | rare | {"data.train_scenes": 40, "mesh.fsdp": 2}
    keys = [f"--config.{name}={value}" for name, value in sizes.items()]
    started = start(2, 2, "launch.train", "--config=configs/scenes_standard.py", f"--workdir={run}", *keys)
    while log not in store.objects:  # for a minute
        assert [process.poll() for process in started] == [None, None]
        time.sleep(0.5)
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert statuses(started) == [128 + signal.SIGTERM] * 2
    (saved,) = saved_steps(as_path(run))
    assert json.loads(store.objects[log].content.splitlines()[-1])["step"] == saved
