"""The loop around the step: resuming equals never stopping, and nothing goes wrong silently."""

import itertools
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

from absl import flags
import jax
import numpy as np
import pytest

from configs import base
from launch.training import stages, train_all
from tc_jepa.config.validate import validate
from tc_jepa.data import pipeline
from tc_jepa.data.captions import tokenizer as captions
from tc_jepa.data.sources import BadRecord
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.models import vit
from tc_jepa.monitoring import progress as metrics
from tc_jepa.monitoring import tasks as online
from tc_jepa.storage.checkpoint import Checkpoints, fingerprints, restore_encoder, saved_steps
from tc_jepa.storage.files import held, refuse_held, TRAINING_LOCK
from tests import tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def mite():
    """An encoder that compiles in a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.SIZES, "mite", vit.Size(width=32, depth=1, heads=4, hidden=64))
        yield


def tiny_config(**changes):
    config = base.get_config()
    config.update_from_flattened_dict(
        tiny.SMALL_RUN
        | {
            "train.steps": 6,
            "train.checkpoint_every": 3,
            "train.eval_every": 3,
            "train.keep_checkpoints": 5,
            "data.train_scenes": 40,
            "model.encoder": "mite",
            "optimizer.warmup_steps": 2,
            "target_encoder.start_momentum": 0.9,
        }
        | changes
    )
    validate(config)
    return config


def lines(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / metrics.METRICS_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def final_state(workdir: Path) -> dict[str, np.ndarray]:
    manager = Checkpoints(workdir, 5)
    try:
        items = manager._manager.restore(6)
    finally:
        manager.close()
    return {
        name + jax.tree_util.keystr(path): np.asarray(leaf)
        for name in ("state", "target")
        if name in items
        for path, leaf in jax.tree_util.tree_leaves_with_path(items[name])
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of six steps that never stopped."""
    workdir = tmp_path_factory.mktemp("straight")
    tiny.train(tiny_config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def straight_bfloat16(tmp_path_factory):
    """The same run with matrix products in bfloat16."""
    workdir = tmp_path_factory.mktemp("bfloat16")
    tiny.train(tiny_config(**{"model.dtype": "bfloat16"}), workdir)
    return workdir


def interrupt_after(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal once `step` has been dispatched, as a scheduler would."""
    dispatched = metrics.Progress.dispatched

    def noticing(self, at, values):
        dispatched(self, at, values)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(metrics.Progress, "dispatched", noticing)


def assert_stopped_and_resumed_equals(straight, config, workdir):
    """Trains six steps in `workdir`, stopped after three and resumed, as `straight` was trained without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(SystemExit) as stopped:
            tiny.train(config, workdir)
        assert stopped.value.code == 128 + signal.SIGTERM
    assert saved_steps(workdir) == [3]
    tiny.train(config, workdir)
    assert_same_run(workdir, straight)


def assert_same_run(workdir, straight):
    """The same metrics, and the same state after step 6."""
    assert lines(workdir) == lines(straight)
    expected, found = final_state(straight), final_state(workdir)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(("workers", "run"), [(0, "straight"), (2, "straight_bfloat16")])
def test_three_steps_and_three_resumed_equal_six(request, tmp_path, workers, run):
    straight = request.getfixturevalue(run)
    dtype = "bfloat16" if run == "straight_bfloat16" else "float32"
    config = tiny_config(**{"data.workers": workers, "model.dtype": dtype})
    assert_stopped_and_resumed_equals(straight, config, tmp_path)


def test_metrics_beyond_the_restored_step_are_cut(straight, tmp_path, monkeypatch, caplog):
    """Killed after step 5, with a checkpoint of step 3: steps 4 and 5 are done, and written, again.

    Lines of zeros, and of text where numbers belong, are set aside.
    """
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(SystemExit):
            tiny.train(tiny_config(), tmp_path)
    with (tmp_path / metrics.METRICS_FILE).open("a") as file:
        file.write('\0\0\n{"step": 2, "loss": "x"}\n{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    with caplog.at_level("WARNING", logger="absl"):
        tiny.train(tiny_config(), tmp_path)
    assert lines(tmp_path) == lines(straight)
    assert (tmp_path / "metrics.damaged.jsonl").read_text() == '\0\0\n{"step": 2, "loss": "x"}\n'
    (said,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert "2 damaged line(s)" in said and said.endswith(": 5, 6")


def test_judging_on_the_way_changes_nothing_but_the_log(straight, tmp_path):
    """Also where the run is stopped and resumed: the tasks read data of their own."""
    tiny.train(tiny_config(**{"train.eval_tasks": "knn,rank", "train.eval_examples": 30}), tmp_path)
    rows, before = lines(tmp_path), lines(straight)
    judged = [{name for name in row if name.startswith("eval/")} for row in rows]
    assert [bool(names) for names in judged] == [row["step"] % 3 == 0 for row in rows]
    assert {"eval/knn/shape", "eval/knn_10/pair", "eval/chance/count", "eval/rank/lidar"} <= judged[0]
    assert rows[0]["eval/rank/rankme"] != rows[-1]["eval/rank/rankme"]
    assert [{name: value for name, value in row.items() if name not in judged[0]} for row in rows] == before
    expected, found = final_state(straight), final_state(tmp_path)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    with pytest.raises(UserError, match="labels belong to one dataset: choose with --data or evaluation.data"):
        online.task_monitor(tiny_config(**{"train.eval_tasks": "knn", "evaluation.data": "a,b"}))


def test_a_profile_is_recorded_of_the_steps_that_are_asked_for(straight, tmp_path):
    tiny.train(tiny_config(**{"train.trace_start": 2, "train.trace_steps": 2}), tmp_path)
    assert len(list((tmp_path / "trace").rglob("*.xplane.pb"))) == 1
    assert lines(tmp_path) == lines(straight)


def test_every_line_names_what_the_run_did(straight):
    rows = lines(straight)
    assert [row["step"] for row in rows] == list(range(7))
    for row in rows[1:]:
        assert row["loss"] == pytest.approx(
            row["loss/prediction"] + 0.1 * row["loss/sparsity"] + 0.5 * row["loss/consistency"], rel=1e-5
        )
    looks = [row for row in rows if "rank/rankme" in row]
    assert [row["step"] for row in looks] == [0, 3, 6]
    for name in ("text_worth/shuffled", "text_worth/absent", "layer_0/positive_cosines", "layer_0/attention_entropy"):
        assert np.isfinite([row[name] for row in looks]).all()


def test_a_finished_run_is_left_alone(straight):
    before = (straight / metrics.METRICS_FILE).read_text()
    tiny.train(tiny_config(), straight)
    assert (straight / metrics.METRICS_FILE).read_text() == before


def test_a_second_training_in_a_workdir_is_refused_before_it_writes(tmp_path):
    lock = tmp_path / "run" / TRAINING_LOCK
    lock.parent.mkdir()
    lock.touch()
    # The size would be refused when JAX is loaded, and the data when it is opened.
    command = [
        "launch.train",
        "--config=configs/scenes_standard.py",
        f"--workdir={lock.parent}",
        "--config.image.size=225",
    ]
    with held(lock):
        with pytest.raises(UserError, match=f"^{lock.parent} "):
            tiny.train(tiny_config(), lock.parent)
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {lock.parent} ") and done.stderr.count("\n") == 1
    assert list(lock.parent.iterdir()) == [lock]


def test_trainings_that_start_at_once_do_not_share_a_new_workdir(tmp_path):
    (tmp_path / TRAINING_LOCK).touch()
    with held(tmp_path / TRAINING_LOCK), pytest.raises(UserError, match=f"^{tmp_path} "):
        tiny.train(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [TRAINING_LOCK]


def test_a_workdir_is_locked_while_it_is_trained_in(tmp_path, monkeypatch):
    saved = []

    def save(self, state, config):
        with pytest.raises(UserError):
            refuse_held(tmp_path / TRAINING_LOCK)
        saved.append(int(state.step))
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(tiny_config(), tmp_path)
    assert saved == [3]
    refuse_held(tmp_path / TRAINING_LOCK)  # free again


def test_fingerprints_see_one_flipped_bit_and_no_sharding():
    values = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    flipped = values.copy()
    flipped.view(np.uint32)[3, 5] ^= 1
    mesh = sharding.make_mesh(1, 8)
    sharded = jax.device_put({"a": values}, sharding.parameter_sharding(mesh, {"a": values}, min_size=1))
    assert not sharded["a"].is_fully_replicated
    before = fingerprints({"a": jax.numpy.asarray(values)})
    assert fingerprints(sharded) == before
    assert fingerprints({"a": jax.numpy.asarray(flipped)}) != before


def damage(workdir: Path, step: int, item: str) -> None:
    """Flips bits in the middle of every file that holds an item's arrays."""
    folder = workdir / "checkpoints" / str(step) / item
    data = [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert data
    for path in data:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x55
        path.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_not_restarted(straight, tmp_path):
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    damage(tmp_path, 6, "target")
    abstract = jax.eval_shape(lambda: None)
    with pytest.raises(UserError, match="step 9; it has 3, 6"):
        restore_encoder(tmp_path, 9, abstract, averaged=True)
    with pytest.raises(UserError, match="use step 3, as a resume with train.on_damage=older"):
        tiny.train(tiny_config(**{"train.steps": 8}), tmp_path)


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    """After the first step, whose loss is finite."""
    huge = dict.fromkeys(("start_learning_rate", "peak_learning_rate", "start_weight_decay"), 1e38)
    changes = {f"optimizer.{name}": value for name, value in huge.items()} | {"train.checkpoint_every": 1}
    with pytest.raises(UserError, match=r"not finite after the update at step 1; last good .* there is none\."):
        tiny.train(tiny_config(**changes), tmp_path)
    assert saved_steps(tmp_path) == []


def test_a_teacher_made_from_pixels_teaches_a_student_of_another_size(tmp_path, monkeypatch):
    monkeypatch.setitem(vit.SIZES, "midge", vit.Size(width=16, depth=2, heads=2, hidden=32))
    teacher, student = tmp_path / "teacher", tmp_path
    pixels = {"target_encoder.kind": "pixels", "objective.prediction": "mse", "model.conditioner": "none"}
    taught = {"target_encoder.kind": "frozen", "model.encoder": "midge"}
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    def both():
        config = tiny_config()
        config.update_from_flattened_dict(taught)
        train_all(stages(config, tiny_config(**pixels), student))

    for stopped in (teacher, student):
        with monkeypatch.context() as patch:
            interrupt_after(patch, 3)
            with pytest.raises(SystemExit):
                both()
        assert saved_steps(stopped) == [3]
    both()
    taught["target_encoder.teacher"] = str(teacher)

    before, after = final_state(teacher), final_state(student)
    kernel = "['patch_embed']['kernel']"
    # The teacher, which has no target of its own, is the student's target, unchanged after a resume.
    np.testing.assert_array_equal(after[f"target{kernel}"], before[f"state['params']['encoder']{kernel}"])
    assert f"target{kernel}" not in before
    trained = after[f"state['params']['encoder']{kernel}"]
    abstract = {"patch_embed": {"kernel": jax.ShapeDtypeStruct(trained.shape, trained.dtype)}}
    found, step = restore_encoder(student, None, abstract, averaged=False)
    assert step == 6
    np.testing.assert_array_equal(found["patch_embed"]["kernel"], trained)
    with pytest.raises(UserError, match="target_encoder.teacher=.*model.patch_size=8"):
        coarse = {"model.patch_size": 16, "masking.context_tokens": 2, "masking.min_context": 1}
        tiny.train(tiny_config(**taught, **coarse), tmp_path / "coarse")


def test_a_frozen_t5_is_read_and_neither_trained_nor_saved(tmp_path):
    words = {"model.text": "t5", "model.text_weights": str(tiny.t5_folder(tmp_path / "t5"))}
    tiny.train(tiny_config(**words), tmp_path / "run")
    assert not any("text" in name for name in final_state(tmp_path / "run"))
    rows = lines(tmp_path / "run")
    assert rows[-1]["heldout/prediction"] != rows[-1]["heldout/prediction_shuffled"]


def test_data_without_captions_trains_on_null_captions_and_says_so_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(captions, "sample_captions", lambda *_: ())
    with caplog.at_level("WARNING", logger="absl"):
        tiny.train(tiny_config(), tmp_path)
    assert sum("null captions" in record.getMessage() for record in caplog.records) == 1
    last = lines(tmp_path)[-1]
    assert last["captions"] == last["loss/sparsity"] == 0.0 and np.isfinite(last["loss"])


def broken_off(monkeypatch, end):
    """After three batches, `end` is called for the fourth."""
    iterate = pipeline.iterate

    def three(batches):
        try:
            yield from itertools.islice(batches, 3)
            yield from end()
        finally:
            batches.close()

    def broken(*arguments, **options):
        batches = iterate(*arguments, **options)
        return three(batches) if "cancelled" in options else batches  # the monitor's are whole

    monkeypatch.setattr(pipeline, "iterate", broken)


def bad_data():
    raise BadRecord("shard 1: record 2 cannot be read", about="shard 1")
    yield


def a_signal_while_none_comes():
    os.kill(os.getpid(), signal.SIGTERM)
    yield from ()


@pytest.mark.parametrize(
    ("end", "error"), [(bad_data, UserError), (a_signal_while_none_comes, SystemExit)], ids=["bad data", "signal"]
)
def test_what_ends_the_batches_loses_no_step(straight, tmp_path, monkeypatch, end, error):
    config = tiny_config(**{"train.checkpoint_every": 6})
    with monkeypatch.context() as patch:
        broken_off(patch, end)
        with pytest.raises(error) as stopped:
            tiny.train(config, tmp_path)
    assert saved_steps(tmp_path) == [3]
    if error is SystemExit:
        assert stopped.value.code == 128 + signal.SIGTERM
    else:
        assert stopped.value.about == "shard 1" and "3" in str(stopped.value)
    tiny.train(config, tmp_path)
    assert lines(tmp_path) == lines(straight)
    expected, found = final_state(straight), final_state(tmp_path)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_data_that_is_bad_from_the_first_step_saves_nothing(tmp_path, monkeypatch):
    iterate = pipeline.iterate
    broken = lambda *data, **options: bad_data() if "cancelled" in options else iterate(*data, **options)  # noqa: E731
    monkeypatch.setattr(pipeline, "iterate", broken)
    with pytest.raises(UserError):
        tiny.train(tiny_config(), tmp_path)
    assert saved_steps(tmp_path) == []
