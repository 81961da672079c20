"""Data workers that die, stop or outlive their trainer; the shared memory that they leave."""

import contextlib
import functools
import json
import multiprocessing
from multiprocessing import shared_memory
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from tc_jepa.data import shared_memory as segments
from tc_jepa.data import watched
from tc_jepa.distributed.stop_signals import StopSignals
from tc_jepa.errors import UserError
from tc_jepa.storage.checkpoint import saved_steps
from tc_jepa.storage.files import held
from tests import soak, tiny

ROOT = Path(__file__).parent.parent


class Stuck:
    """In the place of a Grain dataset: gives two batches, and the next one when it is let go on."""

    def __init__(self):
        self.go_on, self.closed, self._count = threading.Event(), False, 0

    def mp_prefetch(self, options, start_worker):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        self._count += 1
        if self._count > 2 and not self.go_on.wait(20):
            raise RuntimeError("nobody let it go on")
        return self._count

    def close(self):
        self.closed = True


@pytest.fixture
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(watched, "TICK", 0.01)
    monkeypatch.setattr(watched, "QUIET", 0.05)
    monkeypatch.setattr(watched, "GRACE", 0.2)
    monkeypatch.setattr(segments, "FOLDER", tmp_path)


def test_a_wait_ends_when_it_is_cancelled_and_is_said(quick, caplog):
    dataset, asked = Stuck(), []

    def cancelled():
        asked.append(1)
        return len(asked) > 20

    batches = watched.WatchedBatches(dataset, 2, cancelled)
    with caplog.at_level("WARNING", logger="absl"):
        assert list(batches) == [1, 2]
    assert sum("data worker 1 of 2" in record.getMessage() for record in caplog.records) == 1
    batches.close()
    dataset.go_on.set()


def test_batches_come_in_order_and_closing_closes(quick):
    dataset = Stuck()
    dataset.go_on.set()
    with contextlib.closing(watched.WatchedBatches(dataset, 2, lambda: False)) as batches:
        assert [next(batches) for _ in range(4)] == [1, 2, 3, 4]
    assert dataset.closed


def test_a_dead_worker_is_named(quick):
    dataset = Stuck()
    batches = watched.WatchedBatches(dataset, 1, lambda: False)
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    assert [next(batches), next(batches)] == [1, 2]
    process.kill()
    with pytest.raises(UserError, match=rf"{process.pid}.*SIGKILL.*memory") as error:
        next(batches)
    assert error.value.about == "data.workers"
    dataset.go_on.set()
    batches.close()


def test_the_error_of_a_worker_that_ended_by_itself_is_awaited(quick, monkeypatch):
    """Grain ends a worker before its error is raised."""
    spawned = multiprocessing.get_context("spawn")
    dataset, end = Stuck(), spawned.Event()
    ended = spawned.Process(target=end.wait, daemon=True)
    batches = watched.WatchedBatches(dataset, 1, lambda: False)
    ended.start()
    assert [next(batches), next(batches)] == [1, 2]
    end.set()
    ended.join()
    monkeypatch.setattr(watched, "GRACE", 10)
    threading.Timer(0.1, dataset.go_on.set).start()
    assert next(batches) == 3
    dataset.go_on.clear()
    monkeypatch.setattr(watched, "GRACE", 0.2)
    with pytest.raises(UserError, match=f"{ended.pid}.*exit code 0"):
        next(batches)
    dataset.go_on.set()
    batches.close()


def test_segments_of_dead_processes_are_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "FOLDER", tmp_path)
    dead = ["tcj00000a", "tcj00000a0001", "tcj00000affff"]
    others = ["tcj00000b", "tcj00000b0001", "psm_12345678", "tcj00000c0001", "tcjother", "tcjother01"]
    for name in dead + others:
        (tmp_path / name).touch()
    with held(tmp_path / "tcj00000b"):
        own = segments.Segments()
        assert {path.name for path in tmp_path.iterdir()} == {*others, own.prefix}
    assert re.fullmatch(segments.TOKEN, own.prefix)
    own.close()
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_prefix_that_another_start_holds_is_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "FOLDER", tmp_path)
    drawn = iter(["00000a", "00000b"])
    monkeypatch.setattr(segments.secrets, "token_hex", lambda size: next(drawn))
    with held(tmp_path / "tcj00000a"):
        own = segments.Segments()
        assert own.prefix == "tcj00000b"
        own.close()


@pytest.mark.skipif(not segments.FOLDER.is_dir(), reason="segments are files on Linux only")
def test_segments_are_named_after_their_run_and_removed_at_its_end(monkeypatch):
    own = segments.Segments()
    monkeypatch.setattr(shared_memory, "_SHM_NAME_PREFIX", shared_memory._SHM_NAME_PREFIX)
    segments.name_after(own.prefix)
    left, used = (shared_memory.SharedMemory(create=True, size=8) for _ in range(2))
    assert left.name.startswith(own.prefix) and used.name != left.name
    left.close()
    own.close()
    assert [path.name for path in segments.FOLDER.glob(f"{own.prefix}*")] == [used.name]
    used.close()
    used.unlink()


def test_a_hangup_stops_and_only_a_second_other_signal_interrupts(request):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    for first, second in (("SIGHUP", "SIGHUP"), ("SIGHUP", "SIGTERM"), ("SIGTERM", "SIGHUP")):
        with StopSignals() as stop:
            assert not stop.pending()
            for name in (first, second):
                signal.raise_signal(getattr(signal, name))
            assert stop.pending() and stop.requested(1) and stop.signal != signal.SIGINT
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)


def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.pending()
    finally:
        signal.signal(signal.SIGHUP, before)


class Run:
    """launch.train with two data workers, in a session of its own."""

    def __init__(self, workdir: Path):
        keys = tiny.SMALL_RUN | {"train.steps": 100_000, "train.checkpoint_every": 100_000, "train.eval_every": 100_000}
        keys |= {"data.train_scenes": 200, "data.workers": 2}
        flags = [f"--config.{name}={value}" for name, value in keys.items()]
        command = ["launch.train", "--config=configs/scenes_standard.py", f"--workdir={workdir}", *flags]
        environment = os.environ | {"XLA_FLAGS": ""}
        self.metrics, self.workdir = workdir / "metrics.jsonl", workdir
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # also where tests run by nohup
        )

    def wait_for_steps(self) -> None:
        self.wait_for(lambda: self.metrics.exists() and len(self.metrics.read_text().splitlines()) >= 5, 300)
        self.wait_for(lambda: len(self.workers()) == 2, 60)

    def wait_for(self, condition, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.1)

    def workers(self) -> list[int]:
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                text = status.read_text()
                if f"PPid:\t{self.process.pid}\n" in text and text.startswith(f"Name:\t{watched.NAME}"):
                    found.append(int(status.parent.name))
        return found

    def end(self) -> tuple[int, str]:
        errors = self.process.communicate(timeout=120)[1]
        return self.process.returncode, errors

    def last(self) -> int:
        return json.loads(self.metrics.read_text().splitlines()[-1])["step"]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def run(tmp_path):
    """A run that has logged 5 steps. It never outlives its test."""
    started = Run(tmp_path / "run")
    try:
        started.wait_for_steps()
        yield started
    finally:
        started.kill()


def gone(pids: list[int]) -> None:
    end = time.monotonic() + 20
    while any(map(soak.alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.1)


linux = pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="workers are found in /proc")


@linux
@pytest.mark.slow
def test_stopped_workers_are_not_waited_for_and_hangups_reach_the_trainer_alone(run):
    workers = run.workers()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)  # no batch comes any more
    os.killpg(run.process.pid, signal.SIGHUP)
    status, errors = run.end()
    assert status == 128 + signal.SIGHUP and "Traceback" not in errors and "leaked" not in errors
    assert saved_steps(run.workdir) == [run.last()]
    gone(workers)


@linux
@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_the_steps_before_are_saved(run):
    workers = run.workers()
    os.kill(workers[0], signal.SIGKILL)
    status, errors = run.end()
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2 and str(workers[0]) in line and "SIGKILL" in line
    assert "Traceback" not in errors and "leaked" not in errors
    assert saved_steps(run.workdir) == [run.last()] and str(run.last()) in line
    gone(workers)


def prefix_of(pid: int) -> str:
    """The prefix of a trainer's segments: the name of the file that it holds locked."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the trainer closed it since it was listed
            name = Path(os.readlink(file)).name
            if re.fullmatch(segments.TOKEN, name):
                return name
    raise AssertionError(f"process {pid} holds no prefix")


@linux
@pytest.mark.slow
def test_workers_end_with_a_killed_trainer_and_leave_nothing(run):
    workers, prefix = run.workers(), prefix_of(run.process.pid)
    run.process.kill()
    run.end()
    gone(workers)
    assert not list(segments.FOLDER.glob(f"{prefix}*"))


@linux
@pytest.mark.slow
def test_the_next_start_clears_what_a_killed_job_left(run):
    workers, prefix = run.workers(), prefix_of(run.process.pid)
    os.killpg(run.process.pid, signal.SIGKILL)  # workers and Python's resource tracker too
    run.end()
    gone(workers)
    assert list(segments.FOLDER.glob(f"{prefix}*"))
    segments.Segments().close()
    assert not list(segments.FOLDER.glob(f"{prefix}*"))
