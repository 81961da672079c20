"""The jobs of a sweep: every variant of a configuration with every seed, each in a workdir of its own."""

from collections.abc import Sequence
from pathlib import Path
import shlex
import signal
import subprocess
import sys
from typing import NamedTuple

import ml_collections

from tc_jepa.errors import UserError


class Job(NamedTuple):
    """One variant with one seed: its resolved configuration and the command that trains it."""

    variant: str
    seed: int
    workdir: Path
    config: ml_collections.ConfigDict
    train: Sequence[str]

    @property
    def results(self) -> Path:
        """Where launch.evaluate writes the results of the last step; the job is finished when they exist."""
        return self.workdir / "eval" / str(self.config.train.steps) / "results.json"

    @property
    def finished(self) -> bool:
        return self.results.is_file()

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def run_job(number: int, job: Job) -> bool:
    """Trains and evaluates a job; returns False for one that was finished. UserError where a command fails."""
    name = f"job {number} ({job})"
    if job.finished:
        print(f"{name} is finished", flush=True)
        return False
    step = f"--step={job.config.train.steps}"
    evaluate = [sys.executable, "-m", "launch.evaluate", f"--encoder={job.workdir}", step]
    for command in (job.train, evaluate):
        run_command(name, job.workdir, command)
    return True


def run_command(name: str, workdir: Path, command: Sequence[str]) -> None:
    """Prints and runs a command of the job called `name`, its output appended to WORKDIR/job.log.

    UserError where it fails. SIGTERM and Ctrl-C are passed to the command, which saves and ends; then this process
    exits with 128 + the signal.
    """
    line = shlex.join(["python", *command[1:]])
    print(f"{name}: {line}", flush=True)
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / "job.log"
    received = []
    with log.open("a") as file:
        file.write(f"+ {line}\n")
        file.flush()
        # A session of its own: otherwise the terminal sends it Ctrl-C too, and launch.train ends at once on a second
        # signal, without saving.
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

        def pass_on(number, frame):
            received.append(number)
            process.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            status = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if received:
        print(f"stopped by {signal.Signals(received[0]).name} in {name}; the same command resumes", flush=True)
        sys.exit(128 + received[0])
    if status:
        raise UserError(f"{name} failed with status {status}: {line}; its output is in {log}")
