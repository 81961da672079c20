"""Run the variants of a sweep, each with every seed, and put their results into one table.

  python -m launch.sweep --sweep=configs/sweeps/fusion_scenes.py --workdir=runs/fusion_scenes [--set=KEY=VALUE ...]

A job is one variant with one seed, in WORKDIR/VARIANT/seed_SEED: launch.train, then launch.evaluate. All jobs'
settings are checked before the first starts. Finished jobs are skipped, so the same command resumes. Writes
WORKDIR/sweep.csv, sweep.md and sweep.png after every job.

For an array of machines: --list prints the jobs with their numbers, --only=NUMBER runs one of them and writes no table;
the command without --only, once all are finished, writes it.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import runpy
import shlex
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from absl import flags

from configs import base
from launch import common, setting
from tc_jepa.errors import UserError

SWEEP = common.define_path("sweep", None, "Sweep file, such as configs/sweeps/fusion_scenes.py.")
WORKDIR = common.define_path("workdir", None, "Directory of the sweep: made if missing, resumed if there.")
ONLY = flags.DEFINE_integer("only", None, "Number of the only job to run; no table is written.")
LIST = flags.DEFINE_boolean("list", False, "Print the jobs with their numbers, and run nothing.")
flags.adopt_module_key_flags(setting)  # --set, for all jobs


class Planned(NamedTuple):
    """A job, the resolved configuration that it must have, and the command that trains it."""

    job: Any  # tc_jepa.sweeps.Job, which is imported late
    config: Any
    command: list[str]


def main(argv: Sequence[str]) -> None:
    del argv
    if SWEEP.value is None or WORKDIR.value is None:
        raise UserError(
            "give --sweep=FILE and --workdir=DIR, such as --sweep=configs/sweeps/fusion_scenes.py "
            "--workdir=runs/fusion_scenes"
        )
    # Imported here, so that --help and a mistyped flag answer at once.
    from tc_jepa.report import sweeps

    path, workdir = Path(SWEEP.value), Path(WORKDIR.value)
    planned, baseline = plan(path, workdir, setting.SET.value), load(path).baseline
    if ONLY.value is not None and not 0 <= ONLY.value < len(planned):
        raise UserError(f"--only={ONLY.value}: the jobs are numbered 0 to {len(planned) - 1}; --list prints them")
    jobs = [item.job for item in planned]
    if LIST.value:
        for number, job in enumerate(jobs):
            print(f"{number}: {job.variant}, seed {job.seed}{' (finished)' if job.results.is_file() else ''}")
        return
    for number in range(len(jobs)) if ONLY.value is None else (ONLY.value,):
        job, _, command = planned[number]
        name = f"job {number} ({job.variant}, seed {job.seed})"
        if job.results.is_file():
            print(f"{name} is finished", flush=True)
            continue
        run_logged(name, job.workdir, command)
        evaluate = [sys.executable, "-m", "launch.evaluate", f"--encoder={job.workdir}", f"--step={job.steps}"]
        run_logged(name, job.workdir, evaluate)
        if ONLY.value is None:
            sweeps.write_table(workdir, path.stem, jobs, baseline)
    if ONLY.value is None:
        print(sweeps.write_table(workdir, path.stem, jobs, baseline))
        print(f"written to {workdir}")


def load(path: Path):
    """The sweep of a file. UserError where its baseline is none of its variants."""
    sweep = _load("--sweep", path, "get_sweep")
    if sweep.baseline is not None and sweep.baseline not in sweep.variants:
        raise UserError(f"--sweep {path}: its baseline {sweep.baseline!r} is none of {', '.join(sweep.variants)}")
    return sweep


def plan(path: Path, workdir: Path, assignments: Sequence[str]) -> list[Planned]:
    """All jobs of a sweep file, validated. UserError, naming the variant, before anything is written."""
    from tc_jepa.config.validate import validate
    from tc_jepa.report.sweeps import Job

    sweep = load(path)
    shared = dict(setting.assignment(text) for text in assignments)
    planned = []
    for variant, own in sweep.variants.items():
        reserved = sorted({"train.seed"} & (sweep.settings.keys() | own.keys() | shared.keys()) | own.keys() & shared)
        if reserved:
            raise UserError(f"variant {variant}: the sweep itself varies {', '.join(reserved)}; do not set it as well")
        for seed in sweep.seeds:
            config = _load("the sweep's config", Path(sweep.config), "get_config")
            before = base.flatten(config)
            settings = {**sweep.settings, **own, **shared, "train.seed": seed}
            try:
                setting.apply(config, settings)
                base.expand_paths(config)
                validate(config)
                job = Job(variant, seed, workdir / variant / f"seed_{seed}", config.train.steps)
                common.check_workdir(job.workdir, config)
            except UserError as error:
                raise UserError(f"variant {variant}, seed {seed}: {error}") from error
            values = base.flatten(config)
            keys = [f"--config.{key}={values[key]}" for key in settings if values[key] != before[key]]
            command = [sys.executable, "-m", "launch.train", f"--config={sweep.config}", *keys]
            planned.append(Planned(job, config, [*command, f"--workdir={job.workdir}"]))
    return planned


def run_logged(name: str, workdir: Path, command: Sequence[str]) -> None:
    """Prints a command and runs it, its output into WORKDIR/job.log. UserError where it fails.

    SIGTERM and Ctrl-C go on to the command, which saves and ends; then this program ends too, with 128 + the signal.
    """
    line = shlex.join(["python", *command[1:]])
    print(f"{name}: {line}", flush=True)
    workdir.mkdir(parents=True, exist_ok=True)
    log = workdir / "job.log"
    received = []
    with log.open("a") as file:
        file.write(f"+ {line}\n")
        file.flush()
        # In a session of its own: the terminal would send it Ctrl-C too, and to launch.train a second signal means now.
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


def _load(what: str, path: Path, function: str):
    """What a Python file's get_sweep or get_config returns."""
    if not path.is_file():
        raise UserError(f"{what} {path}: there is no such file")
    names = runpy.run_path(os.fspath(path))
    if function not in names:
        raise UserError(f"{what} {path} has no {function}()")
    return names[function]()


if __name__ == "__main__":
    common.run(main)
