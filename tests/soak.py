"""Kills a training again and again, resumes it by the same command, and compares its end with an uninterrupted run.

  python -m tests.soak --kills=50 --workers=2

A run of a minute on drawn scenes is killed by SIGKILL at random moments: while it starts, between steps, and while a
checkpoint is being written. After each kill no process of it, no shared memory and no temporary file may be left 15 s
later. A run that reached its end is compared with the uninterrupted one: its log, without times, and the fingerprint of
every array of its last checkpoint. Then another run starts, until there were enough kills.

Writes one line a kill and one line a run, and exits with 1 where anything differed or was left. Other programs that
create shared memory meanwhile are taken for the run's.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import json
import os
from pathlib import Path
import random
import subprocess
import sys
import tempfile
import time

from tests import tiny

ROOT = Path(__file__).parent.parent
CONFIG, STEPS, EVERY = "configs/scenes_standard.py", 120, 10
SETTINGS = tiny.SMALL_RUN | {
    "train.steps": STEPS,
    "train.checkpoint_every": EVERY,
    "train.eval_every": 1000,
    "train.keep_checkpoints": 3,
    "model.encoder": "nano",
    "data.train_scenes": 200,
}
MOMENTS = ("saving", "steps", "saving", "start")  # of the kills, in turn
GRACE = 15.0  # seconds after a kill until nothing may be left


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how often a run is killed, over all runs")
    parser.add_argument("--workers", type=int, default=2, help="data.workers of the runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        return soak(Path(folder), asked.kills, asked.workers, random.Random(asked.seed))


def soak(folder: Path, kills: int, workers: int, rng: random.Random) -> int:
    """Returns 0 where every run ended as the uninterrupted one and nothing was left, else 1."""
    temporary = folder / "tmp"  # the runs' own folder for temporary files
    temporary.mkdir()
    reference, faults, killed, runs = folder / "reference", 0, 0, 0
    with started(reference, workers, temporary) as process:
        if process.wait():
            print(f"the uninterrupted run failed: {last_line(reference)}")
            return 1
    clean, locked = set(os.listdir(temporary)), locked_files()  # what a run that ended leaves
    while killed < kills:
        workdir, runs = folder / f"run_{runs}", runs + 1
        while killed < kills:
            before = shared_memory()
            with started(workdir, workers, temporary) as process:
                moment = MOMENTS[killed % len(MOMENTS)]
                if not wait_for(moment, workdir, process, rng):
                    break  # it ended before
                children = descendants(process.pid)
                process.kill()
                process.wait()
            killed += 1
            left = remains(children, before, temporary, clean)
            faults += bool(left)
            saved = ", ".join(map(str, steps_of(workdir))) or "none"
            some = f"{len(left)}, such as {left[0]}" if left else "nothing"
            print(f"kill {killed}, {moment}: steps {saved} are saved; left: {some}", flush=True)
        with started(workdir, workers, temporary) as process:
            code = process.wait()
        wrong = f"exit code {code}: {last_line(workdir)}" if code else difference(reference, workdir, STEPS)
        if not wrong and (left := locked_files() - locked):
            wrong = f"/dev/shm/{min(left)} is left"
        faults += bool(wrong)
        print(f"run {runs}: {wrong or 'equal to the uninterrupted run, bit for bit'}", flush=True)
    print(f"{kills} kills in {runs} runs, {faults} faults")
    return 1 if faults else 0


@contextlib.contextmanager
def started(workdir: Path, workers: int, temporary: Path) -> Iterator[subprocess.Popen]:
    """A training in `workdir`, whose output is added to WORKDIR.log."""
    flags = [f"--config.{name}={value}" for name, value in (SETTINGS | {"data.workers": workers}).items()]
    command = [
        sys.executable,
        "-m",
        "launch.train",
        "--config=configs/scenes_standard.py",
        f"--workdir={workdir}",
        *flags,
    ]
    environment = os.environ | {
        "TMPDIR": str(temporary),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with open(f"{workdir}.log", "ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(moment: str, workdir: Path, process: subprocess.Popen, rng: random.Random) -> bool:
    """Waits for the moment of a kill; returns False if the process ended before it."""
    if moment == "start":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(1, 12))
        return process.poll() is None
    lines, seen, new = log_length(workdir), unfinished_saves(workdir), 0
    steps, saves = rng.randint(2, 14), rng.randint(1, 3)
    while process.poll() is None:
        now, unfinished = log_length(workdir), unfinished_saves(workdir)
        lines = min(lines, now)  # a resume removes lines after its checkpoint
        seen, new = seen | unfinished, new + len(unfinished - seen)
        if now >= lines + steps if moment == "steps" else new >= saves:
            time.sleep(rng.choice((0, rng.uniform(0, 0.1))))
            return process.poll() is None
        time.sleep(0.001)
    return False


def log_length(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def unfinished_saves(workdir: Path) -> set[str]:
    """The directories of checkpoints that are being written; Orbax renames them to the step's number at the end."""
    folder = workdir / "checkpoints"
    return {name for name in os.listdir(folder) if not name.isdigit()} if folder.is_dir() else set()


def steps_of(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit()) if folder.is_dir() else []


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [found for child in children for found in (child, *descendants(child))]


def shared_memory() -> set[str]:
    """The segments and semaphores there are. An empty one takes no memory: its process was killed as it made it."""
    found = set()
    for path in Path("/dev/shm").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been removed
            if path.stat().st_size:
                found.add(path.name)
    return found


def locked_files() -> set[str]:
    """The empty files by which runs know whose shared memory is whose; a start removes those of killed runs."""
    return {path.name for path in Path("/dev/shm").glob("tcj??????")}


def remains(processes: Sequence[int], memory: set[str], temporary: Path, clean: set[str]) -> list[str]:
    """Returns what is left GRACE seconds after a kill at most, as soon as it is nothing."""
    end = time.monotonic() + GRACE
    while True:
        left = [f"process {pid}" for pid in processes if alive(pid)]
        left += [f"/dev/shm/{name}" for name in sorted(shared_memory() - memory)]
        left += [str(temporary / name) for name in sorted(set(os.listdir(temporary)) - clean)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def difference(reference: Path, workdir: Path, last: int) -> str:
    """Returns in what a run that ended at step `last` differs from the uninterrupted one; "" where it does not."""
    expected, found = (rows(path) for path in (reference, workdir))
    if len(expected) != len(found):
        return f"{len(found)} lines in its log, not {len(expected)}"
    for one, other in zip(expected, found):
        if one != other:
            return f"another line of step {one['step']} in its log"
    expected, found = (fingerprints(path, last) for path in (reference, workdir))
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return f"another {wrong[0]} in step {last}" if wrong else ""


def rows(workdir: Path) -> list[dict[str, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "images_per_second"} for line in lines]


def fingerprints(workdir: Path, step: int) -> dict[str, int]:
    items = json.loads((workdir / "checkpoints" / str(step) / "fingerprints" / "metadata").read_text())
    return {f"{item} {name}": value for item, arrays in items.items() for name, value in arrays.items()}


def last_line(workdir: Path) -> str:
    return Path(f"{workdir}.log").read_text().rstrip().rpartition("\n")[2]


if __name__ == "__main__":
    sys.exit(main())
