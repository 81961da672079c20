"""Runs the variants of a sweep, each with every seed, and writes their results into one table.

  python -m launch.sweep --sweep=configs/sweeps/fusion.py:scenes --workdir=runs/fusion_scenes [--set=KEY=VALUE ...]

A job is one variant with one seed, in WORKDIR/VARIANT/seed_SEED: launch.train, then launch.evaluate. The settings of
all jobs are checked before the first one starts. Finished jobs are skipped, so the same command resumes. Writes
WORKDIR/sweep.csv, sweep.md and sweep.png after every job. --metrics=REGEX limits what sweep.md and sweep.png show.

For an array of machines: --list prints the jobs with their numbers, and --only=NUMBER runs one of them and writes no
table; once all are finished, the command without --only writes it.
"""

from collections.abc import Sequence
import itertools
import os
from pathlib import Path
import re
import runpy
import sys

from absl import flags

from configs import base
from configs.keys import flatten
from launch import common, setting
from tc_jepa.errors import UserError

SWEEP = common.define_path(
    "sweep", None, "FILE[:NAME], such as configs/sweeps/fusion.py:scenes; without NAME, the first sweep of the file."
)
WORKDIR = common.define_path("workdir", None, "Directory of the sweep: created if missing, resumed if it exists.")
ONLY = flags.DEFINE_integer("only", None, "Number of the only job to run; no table is written.")
METRICS = flags.DEFINE_string(
    "metrics",
    None,
    "Regular expression: only metrics whose whole name matches it are in sweep.md and sweep.png, such as "
    "'linear_fast/.*|knn/.*'. Default: all.",
)
LIST = flags.DEFINE_boolean("list", False, "Print the jobs with their numbers, and run nothing.")
flags.adopt_module_key_flags(setting)  # --set, for all jobs


def main(argv: Sequence[str]) -> None:
    del argv
    common.require("sweep", "workdir")
    try:
        re.compile(METRICS.value or "")
    except re.error as error:
        raise UserError(f"--metrics={METRICS.value}: not a regular expression: {error}") from error
    # Imported late, so that --help and a mistyped flag are answered at once.
    from tc_jepa.sweeps.jobs import run_job
    from tc_jepa.sweeps.table import write_table

    (name, sweep), workdir, shown = load(SWEEP.value), Path(WORKDIR.value), METRICS.value or None
    jobs = plan(sweep, workdir, setting.SET.value)
    if ONLY.value is not None and not 0 <= ONLY.value < len(jobs):
        raise UserError(f"--only={ONLY.value}: the jobs are numbered 0 to {len(jobs) - 1}; --list prints them")
    if LIST.value:
        for number, job in enumerate(jobs):
            print(f"{number}: {job}{' (finished)' if job.finished else ''}")
        return
    if ONLY.value is not None:
        run_job(ONLY.value, jobs[ONLY.value])
        return
    for number, job in enumerate(jobs):
        if run_job(number, job):
            write_table(workdir, name, jobs, sweep.baseline, shown)
    print(write_table(workdir, name, jobs, sweep.baseline, shown))
    print(f"written to {workdir}")


def load(text: str):
    """Returns the name of a sweep and the sweep, for FILE or FILE:NAME. UserError where there is no such sweep."""
    file, _, name = text.partition(":")
    sweeps = _load(f"--sweep={text}", Path(file), "SWEEPS")
    name = name or next(iter(sweeps))
    if name not in sweeps:
        raise UserError(f"--sweep={text}: there is no sweep {name!r} in {file}; give one of {', '.join(sweeps)}")
    sweep = sweeps[name]
    if sweep.baseline is not None and sweep.baseline not in sweep.variants:
        raise UserError(f"--sweep={text}: the baseline {sweep.baseline!r} is not one of {', '.join(sweep.variants)}")
    return f"{Path(file).stem}:{name}", sweep


def plan(sweep, workdir: Path, assignments: Sequence[str]):
    """Returns all jobs of a sweep, seeds innermost, validated; nothing is written.

    A variant's own settings come after the sweep's and before `assignments`, which are --set=KEY=VALUE for all jobs.
    UserError, naming the variant, for a bad setting, and where two of them would set the same thing.
    """
    from tc_jepa.config.validate import validate
    from tc_jepa.sweeps.jobs import Job

    shared = dict(setting.assignment(text) for text in assignments)
    jobs = []
    for (variant, own), seed in itertools.product(sweep.variants.items(), sweep.seeds):
        varied = {"train.seed"} & {*sweep.settings, *own, *shared} | own.keys() & shared.keys()
        if varied:
            raise UserError(f"variant {variant}: the sweep itself varies {', '.join(sorted(varied))}; do not set it")
        settings = {**sweep.settings, **own, **shared, "train.seed": seed}
        file, _, name = sweep.config.partition(":")  # FILE or FILE:NAME, as in --config
        config = _load("the sweep's configuration", Path(file), "get_config")(*([name] if name else []))
        before, folder = flatten(config), workdir / variant / f"seed_{seed}"
        try:
            setting.apply(config, settings)
            base.expand_paths(config)
            base.KEYS.check(config, {**sweep.settings, **shared}, own)
            validate(config)
            common.check_workdir(folder, config)
        except UserError as error:
            raise UserError(f"variant {variant}, seed {seed}: {error}", about=error.about) from error
        values = flatten(config)
        used = [key for key in settings if values[key] != before[key] and base.KEYS.is_used(key, values)]
        keys = [f"--config.{key}={values[key]}" for key in used]
        train = [sys.executable, "-m", "launch.train", f"--config={sweep.config}", *keys, f"--workdir={folder}"]
        jobs.append(Job(variant, seed, folder, config, train))
    return jobs


def _load(what: str, path: Path, name: str):
    """Returns what a Python file calls `name`."""
    if not path.is_file():
        raise UserError(f"{what}: there is no file {path}")
    names = runpy.run_path(os.fspath(path))
    if name not in names:
        raise UserError(f"{what}: {path} does not define {name}")
    return names[name]


if __name__ == "__main__":
    common.run(main)
