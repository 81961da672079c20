"""Damaged workdirs: each is refused in one line or used as it was, and nothing is lost or started over silently."""

import contextlib
import errno
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from launch import common
from tc_jepa.errors import UserError
from tc_jepa.evaluation.results import read_results
from tc_jepa.experiment.experiment import build_experiment
from tc_jepa.experiment.resume import open_checkpoints, restore_newest
from tc_jepa.monitoring import progress
from tc_jepa.state import TrainState
from tc_jepa.storage.checkpoint import (
    Checkpoints,
    DamagedCheckpoint,
    on_one_device,
    saved_steps,
    trained_networks,
)
from tc_jepa.storage.faults import StorageFault
from tests import tiny
from tests.test_train import assert_same_run, lines, mite, tiny_config  # noqa: F401 - mite is a fixture

# Orbax leaves the futures of a restore that failed to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
OFTEN = {"train.checkpoint_every": 2, "train.log_every": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, mite):  # noqa: F811
    """A run of six steps with checkpoints of steps 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("whole")
    tiny.train(tiny_config(**OFTEN), workdir)
    return workdir


@pytest.fixture(scope="module")
def abstract(whole):
    experiment = build_experiment(tiny_config(**OFTEN))
    return on_one_device(jax.eval_shape(experiment.initial_state, experiment.frozen))


@pytest.fixture
def stopped(whole, tmp_path):
    """The same run as a kill after step 6, before it was saved, would have left it."""
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "6")
    return workdir


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_newest_arrays(workdir: Path) -> None:
    """Cuts every file of arrays of step 4: which of them holds which arrays differs from run to run."""
    for path in (workdir / "checkpoints" / "4" / "state").rglob("d/*"):
        cut(path)


DAMAGES = [  # what is done to which file; every file was tried once with each of these, and with zeros
    ("state/_METADATA", flip),
    ("state/_METADATA", lambda path: path.write_text("[]")),
    ("state/manifest.ocdbt", cut),
    ("target", shutil.rmtree),
    ("fingerprints/metadata", lambda path: path.write_text("[]")),
    ("fingerprints/metadata", lambda path: path.write_text('{"state": [], "target": {}}')),
    ("fingerprints/metadata", lambda path: path.write_bytes(b"")),
    ("_CHECKPOINT_METADATA", lambda path: path.write_text("[]")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_file_of_a_checkpoint_is_refused_in_one_line(stopped, abstract, name, damage):
    step = stopped / "checkpoints" / "4"
    damage(step / name)
    with pytest.raises(DamagedCheckpoint) as refused, contextlib.closing(Checkpoints(stopped, 5)) as checkpoints:
        checkpoints.restore(4, abstract)
    assert str(step.parent) in str(refused.value) and "\n" not in str(refused.value)


# The arrays of a checkpoint share files, so many of them are damaged when these are cut, and Orbax raises one error.
RESTORES = """
import json, sys
import flax, jax
from tc_jepa.storage import checkpoint
workdir, sizes = sys.argv[1], json.loads(sys.argv[2])
shapes = {tuple(path): jax.ShapeDtypeStruct(shape, "float32") for path, shape in sizes}
abstract = checkpoint.on_one_device(flax.traverse_util.unflatten_dict(shapes))
for _ in range(40):
    try:
        if shapes:
            checkpoint.restore_encoder(workdir, None, abstract, averaged=True)
        else:
            checkpoint.restore_trained(workdir, None, "encoder")
    except checkpoint.DamagedCheckpoint:
        continue
    raise AssertionError
"""


@pytest.mark.slow
@pytest.mark.parametrize("reads_shapes", [False, True])
def test_a_checkpoint_with_many_damaged_arrays_prints_nothing_beside_its_error(stopped, abstract, reads_shapes):
    arrays = (stopped / "checkpoints" / "4" / "target").rglob("d/*")
    cut(max(arrays, key=lambda path: path.stat().st_size))
    cut_newest_arrays(stopped)
    shapes = {} if reads_shapes else flax.traverse_util.flatten_dict(abstract.extra)
    sizes = json.dumps([[path, shape.shape] for path, shape in shapes.items()])
    command = [sys.executable, "-c", RESTORES, str(stopped), sizes]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("WARNING:absl")] == []


@pytest.mark.parametrize("name", ["config/metadata", "_CHECKPOINT_METADATA"])
def test_what_a_restore_does_not_need_may_be_absent(stopped, abstract, name):
    (stopped / "checkpoints" / "4" / name).unlink()
    with contextlib.closing(Checkpoints(stopped, 5)) as checkpoints:
        assert int(checkpoints.restore(4, abstract).step) == 4


def test_a_damaged_step_is_set_aside_where_that_is_asked_for(whole, stopped, capsys):
    cut_newest_arrays(stopped)
    with pytest.raises(UserError, match="use step 2, as a resume with train.on_damage=older"):
        tiny.train(tiny_config(**OFTEN), stopped)
    assert saved_steps(stopped) == [2, 4]
    tiny.train(tiny_config(**OFTEN, **{"train.on_damage": "older"}), stopped)
    assert "damaged: step 4, now in" in capsys.readouterr().out
    assert saved_steps(stopped) == [2, 4, 6] and (stopped / "checkpoints" / "damaged" / "4" / "state").is_dir()
    assert_same_run(stopped, whole)


def test_where_no_step_is_whole_all_stay_and_nothing_starts_over(stopped):
    cut_newest_arrays(stopped)
    shutil.rmtree(stopped / "checkpoints" / "2" / "target")
    with pytest.raises(UserError, match="no step of 4, 2 can be restored"):
        tiny.train(tiny_config(**OFTEN, **{"train.on_damage": "older"}), stopped)
    assert saved_steps(stopped) == [2, 4]


def test_a_step_that_orbax_could_not_list_is_set_aside_too(stopped):
    for step in ("4", "2"):
        (stopped / "checkpoints" / step / "_CHECKPOINT_METADATA").write_text("[]")
        if step == "4":
            with contextlib.closing(open_checkpoints(stopped, 5, "older")) as checkpoints:
                assert checkpoints.steps() == [2]
    with pytest.raises(DamagedCheckpoint):
        open_checkpoints(stopped, 5, "older")
    assert saved_steps(stopped) == [2]


def test_lost_checkpoints_are_not_started_over(stopped):
    config = tiny_config(**OFTEN)
    common.check_resumable(stopped, config)
    shutil.rmtree(stopped / "checkpoints")
    with pytest.raises(UserError, match=f"{stopped} holds no checkpoint, and saved.json"):
        common.check_resumable(stopped, config)
    (stopped / "saved.json").unlink()  # as runs of earlier versions
    with pytest.raises(UserError, match=f"{stopped} holds no checkpoint, and metrics.jsonl goes to step 6"):
        common.check_resumable(stopped, config)
    rows = (stopped / "metrics.jsonl").read_text().splitlines(keepends=True)
    (stopped / "metrics.jsonl").write_text("".join(rows[:3]))  # to step 2, whose checkpoint may not have been written
    common.check_resumable(stopped, config)
    values = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps(values | {"train": values["train"] | {"checkpoint_every": "x"}}))
    common.check_resumable(stopped, config)
    (stopped / "config.json").unlink()
    with pytest.raises(UserError, match="goes to step 2"):
        common.check_resumable(stopped, config)


def test_the_first_checkpoint_is_there_once_it_is_saved(tmp_path):
    params = {"encoder": {"kernel": jnp.zeros((1000, 1000))}}
    with contextlib.closing(Checkpoints(tmp_path, 5)) as checkpoints:
        checkpoints.save(TrainState(jnp.int32(0), params, {}, ()), {})
        assert not (tmp_path / "saved.json").exists()
        checkpoints.save(TrainState(jnp.int32(3), params, {}, ()), {})
        assert saved_steps(tmp_path) == [0, 3] and json.loads((tmp_path / "saved.json").read_text())["first_step"] == 3


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), StorageFault),
        (ValueError(f"Error reading: {os.strerror(errno.EIO)}"), StorageFault),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), RuntimeError),
    ],
)
def test_a_checkpoint_that_cannot_be_read_for_now_is_not_taken_for_damaged(
    stopped, abstract, monkeypatch, error, expected
):
    def fail(*arguments, **settings):
        raise error

    with contextlib.closing(open_checkpoints(stopped, 5, "older")) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(expected, match="cannot be read" if expected is StorageFault else None):
            restore_newest(stopped, checkpoints, abstract, "older")
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "metadata", fail)
    with pytest.raises(expected):
        trained_networks(stopped, 4)
    assert saved_steps(stopped) == [2, 4]


def test_a_run_that_starts_again_logs_the_state_before_training_once(tmp_path):
    for value in (1.0, 2.0):
        with progress.Progress(tmp_path, 0, 10, log_every=1, batch_size=1) as log:
            log.write(0, {"rank": value})
    assert lines(tmp_path) == [{"step": 0, "rank": 2.0}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", '{"train": 3}'),
        ("config.json", ""),
        ("config.json", None),
        ("data.json", "[]"),
        ("data.json", '{"data.path": 3}'),
        ("metrics.jsonl", None),
        ("train.lock", None),
        ("saved.json", None),
        ("stopped.json", "3"),
        ("stopped.json", '{"step": "x"}'),
        ("checkpoints/4", "a file"),
        ("checkpoints", "a file"),
    ],
)
def test_files_of_a_workdir_that_are_of_another_kind_are_named(stopped, name, content):
    """Content None is a folder in place of the file."""
    path = stopped / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UserError) as refused:
        common.check_resumable(stopped, tiny_config(**OFTEN))
    assert "\n" not in str(refused.value) and (
        str(path) in str(refused.value) or "train (there 3" in str(refused.value)
    )


@pytest.mark.parametrize("change", [{"train": 3}, {"steps": "many"}])
def test_a_configuration_with_values_of_another_type_is_not_opened(stopped, change):
    values = json.loads((stopped / "config.json").read_text())
    values = values | change if "train" in change else values | {"train": values["train"] | change}
    (stopped / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="config.json"):
        common.run_config(stopped)


@pytest.mark.parametrize(
    "content", ["[]", "\0\0", "", '{"about": [], "scores": {}}', '{"about": {}, "scores": {"a": "x"}}']
)
def test_damaged_results_are_named(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="results.json"):
        read_results(tmp_path / "results.json")


def test_lines_that_are_missing_before_a_resume_are_said(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 10}\n')
    with caplog.at_level("WARNING", logger="absl"):
        progress.Progress(tmp_path, 19, 100, log_every=10, batch_size=1).__exit__()
        progress.Progress(tmp_path, 19, 100, log_every=5, batch_size=1).__exit__()  # which was 10 before
        assert not caplog.records
        progress.Progress(tmp_path, 30, 100, log_every=10, batch_size=1).__exit__()
    assert "nothing of the steps from 11 to 30" in caplog.text
