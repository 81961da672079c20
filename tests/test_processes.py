"""Several processes give the results of one, and share the work of reading features."""

import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import threading
import time

from absl.flags import FLAGS
from absl.testing import flagsaver
import jax
import numpy as np
import pytest

from configs import base
from launch import distributed
from tc_jepa.convert import folder
from tc_jepa.convert.weights import EncoderWeights, square_encoder
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.distributed import relay
from tc_jepa.errors import UserError
from tc_jepa.evaluation import features
from tc_jepa.evaluation.features import FeatureStore, Part
from tc_jepa.methods.method import init_encoder
from tc_jepa.models.vit import Size
from tc_jepa.storage.checkpoint import saved_steps
from tc_jepa.storage.files import held, refuse_held
from tests import tiny
from tests.test_evaluation import pixels, Written

ROOT = Path(__file__).parent.parent
PARTS = [Part(Written(60, 0), range(60), [kind], f"{kind}-train") for kind in ("pooled", "patches")]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "IMAGES_PER_SHARD", {"pooled": 16, "patches": 8})


def as_process(monkeypatch, index: int, count: int) -> None:
    """Makes this the process of that index. The processes run one after another here, so none waits."""
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr("tc_jepa.evaluation.features.wait_for_all", lambda name: None)


def test_processes_share_the_reading_of_features(tmp_path, monkeypatch, small_shards):
    encoders = {"": pixels(), "init/": pixels()}
    folder, written = tmp_path / "features", []
    for index in (0, 1):
        as_process(monkeypatch, index, 2)
        store = FeatureStore(folder, {"data": "here"})
        for part in PARTS:
            store.fill(encoders, part)
        written.append({path.name for path in folder.rglob("*.npz")} - {name for names in written for name in names})
        if index == 0:
            first = store
            with pytest.raises(UserError, match="--output"):
                store.read(encoders, PARTS[0])
    assert all(written)  # each has written some, and none was written twice
    for part in PARTS:
        alone = FeatureStore().read(encoders, part)
        for name, found in store.read(encoders, part).items():
            np.testing.assert_array_equal(found[part.kinds[0]], alone[name][part.kinds[0]])
    store.close()
    assert folder.exists()  # the first process made it and removes it
    first.close()
    assert not folder.exists()


def test_two_evaluations_do_not_share_a_folder(tmp_path):
    store = FeatureStore(tmp_path / "features", {"data": "here"})
    with pytest.raises(UserError, match="features"):
        FeatureStore(tmp_path / "features", {"data": "here"})
    store.close()
    FeatureStore(tmp_path / "features", {"data": "there"}).close()


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def none(file, operation):
        assert file.writable()  # as NFS requires
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    store = FeatureStore(tmp_path / "features", {"data": "here"})
    (tmp_path / "features" / "data" / "killed.npz.tmp").touch()
    store.close()
    assert "features" in caplog.text and "Function not implemented" in caplog.text
    assert not (tmp_path / "features").exists()


def test_a_killed_process_leaves_no_lock(tmp_path):
    path = tmp_path / "lock"
    refuse_held(path)  # not locked
    path.touch()
    code = "import sys, time, pathlib; from tc_jepa.storage.files import held; file = held(pathlib.Path(sys.argv[1])); "
    code += "print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            with pytest.raises(UserError, match=f"^{tmp_path} "):
                refuse_held(path)
        finally:
            process.kill()
    refuse_held(path)
    held(path).close()


def test_a_file_that_is_replaced_before_it_is_locked_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "about.json"
    path.write_text("mine")

    def replaced(file, operation):
        path.unlink()
        path.write_text("another's")

    monkeypatch.setattr(fcntl, "flock", replaced)
    with pytest.raises(UserError, match=str(tmp_path)):
        held(path)


@pytest.mark.parametrize("value", ["here", "localhost:1234,2,2", "localhost,0,2", "localhost:1234,0"])
def test_a_bad_address_is_refused(value):
    if not FLAGS.is_parsed():
        FLAGS(["test"])
    with flagsaver.flagsaver(distributed=value), pytest.raises(UserError) as refused:
        distributed.start(stops_together=False)
    assert refused.value.about == "distributed" and "\n" not in str(refused.value)


SIZES = tiny.SMALL_RUN | {
    "train.steps": 4,
    "train.checkpoint_every": 2,
    "train.eval_every": 4,
    "train.eval_tasks": "knn",
    "train.eval_examples": 40,
    "data.train_scenes": 200,
    "data.workers": 0,
    "mesh.fsdp": 2,
    "evaluation.train_examples": 100,
    "evaluation.test_examples": 60,
    "evaluation.dense_examples": 60,
    "evaluation.batch_size": 20,
}


def start(count: int, devices: int, *command: str, between=lambda port: port) -> list[subprocess.Popen]:
    """Starts `count` processes of a launch command, each on `devices` devices. All but the first connect to the port
    that `between` gives for the coordinator's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    ports = [port, *[between(port)] * (count - 1)]
    each = [[f"--distributed=localhost:{ports[index]},{index},{count}"] * (count > 1) for index in range(count)]
    return [
        subprocess.Popen([sys.executable, "-m", *command, *more], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        for more in each
    ]


def train(workdir: Path, **changes) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in (SIZES | changes).items()]
    return ["launch.train", "--config=configs/scenes_standard.py", f"--workdir={workdir}", *flags]


def statuses(started: list[subprocess.Popen]) -> list[int]:
    with ended_on_failure(started):
        return [process.wait(timeout=600) for process in started]


def wait_for_lines(metrics: Path, count: int, started: list[subprocess.Popen]) -> None:
    """Waits until processes that train have logged `count` lines."""
    end = time.monotonic() + 300
    with ended_on_failure(started):
        while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
            assert [process.poll() for process in started] == [None] * len(started) and time.monotonic() < end
            time.sleep(0.05)


@contextlib.contextmanager
def ended_on_failure(started: list[subprocess.Popen]):
    try:
        yield
    except BaseException:
        for process in started:
            process.kill()
            process.wait()
        raise


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(tmp_path):
    metrics, scores = [], []
    for count in (1, 2):
        workdir = tmp_path / f"run{count}"
        assert statuses(start(count, 4 // count, *train(workdir))) == [0] * count
        metrics.append([json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()])
        tasks = "--tasks=knn,rank,segmentation,grounding"
        evaluate = "launch.evaluate", f"--encoder={tmp_path / 'run1'}", tasks, f"--output={workdir / 'eval'}"
        assert statuses(start(count, 2, *evaluate)) == [0] * count
        assert not (workdir / "eval" / "features.partial").exists()
        scores.append(json.loads((workdir / "eval" / "results.json").read_text())["scores"])
    # Shuffled captions are those of another image of the same process.
    other = ("images_per_second", "heldout/prediction_shuffled", "text_worth/shuffled")
    for one, two in zip(*metrics, strict=True):
        assert one.keys() == two.keys()
        assert {k: v for k, v in two.items() if k not in other} == pytest.approx(
            {k: v for k, v in one.items() if k not in other}, rel=1e-4, abs=1e-5
        )
    assert any(name.startswith("eval/knn/") for name in metrics[0][-1])
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_two_processes_write_the_features_and_word_vectors_of_one(tmp_path):
    data, encoder = str(tmp_path / "data"), tmp_path / "encoder"
    prepare_scenes(60, data, seed=0, size=32)
    size = Size(width=32, depth=1, heads=4, hidden=64)
    vit = square_encoder(size, 8, 32, stored_positions=False)
    encoder.mkdir()
    folder.save(EncoderWeights(vit, init_encoder(vit, (32, 32, 3), jax.random.key(0)), 32), encoder, origin="test")
    tiny.t5_folder(tmp_path / "t5")
    for count in (1, 2):
        features, words = tmp_path / f"features{count}", tmp_path / f"words{count}"
        shared = f"--data={data}", f"--output={features}", "--images_per_shard=16", "--batch_size=8"
        assert statuses(start(count, 2, "launch.extract_features", f"--encoder={encoder}", *shared)) == [0] * count
        assert len(list(features.glob("train-*.npz"))) == 4
        encode = f"--data={data}", f"--text={tmp_path / 't5'}", f"--output={words}", "--batch_size=8"
        assert statuses(start(count, 2, "launch.encode_captions", *encode)) == [0] * count
    for name in ("features", "words"):
        one, two = (tmp_path / f"{name}{count}" for count in (1, 2))
        assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
        for path in one.iterdir():
            if path.suffix == ".npz":
                with np.load(path) as ours, np.load(two / path.name) as theirs:
                    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
            else:
                assert path.read_bytes() == (two / path.name).read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def relayed_here(port: int) -> int:
    """A port of this process that relays to and from the coordinator's."""
    server = socket.create_server(("localhost", 0))
    threading.Thread(target=relay._serve, args=(server, ("localhost", port)), daemon=True).start()
    return server.getsockname()[1]


def pump_late(source: socket.socket, target: socket.socket, closes: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            time.sleep(0.2)
            target.sendall(data)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_stops_both_after_the_same_step(tmp_path, monkeypatch):
    """The network is slow: the processes are in the middle of steps while they agree on the last one."""
    monkeypatch.setattr(relay, "_pump", pump_late)  # in this process, not in those that train
    rare = {"train.checkpoint_every": 10_000, "train.eval_every": 10_000, "train.steps": 10_000, "train.eval_tasks": ""}
    rare["train.eval_examples"] = base.KEYS.named("train.eval_examples").default
    started = start(2, 2, *train(tmp_path / "run", **rare), between=relayed_here)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for_lines(metrics, 5, started)
    started[1].send_signal(signal.SIGTERM)
    assert statuses(started) == [128 + signal.SIGTERM] * 2
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert saved_steps(tmp_path / "run") == [last]
