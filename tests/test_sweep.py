"""Sweeps: every variant of every file can run, finished jobs are skipped, and the table hides nothing."""

import csv
import importlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from launch import sweep
from tc_jepa.errors import UserError
from tc_jepa.evaluation.results import read_results
from tc_jepa.report import sweeps

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "sweeps").glob("[!_]*.py"))
# Nano networks and two steps: what a sweep does, without what it is for.
TINY = """
from configs.sweeps import Sweep
def get_sweep():
    short = {"train.steps": 2, "train.batch_size": 8, "evaluation.train_examples": 300, "evaluation.test_examples": 200}
    variants = {"none": {"model.conditioner": "none"}, "words": {"conditioner.layers": (0,)}}
    return Sweep("configs/quickstart.py", short, variants, seeds=(0, 3))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


def launch(path: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={path}", f"--workdir={workdir}", *arguments]
    environment = os.environ | {"XLA_FLAGS": ""}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)


def finish(job: sweeps.Job, score: float) -> None:
    """Results as launch.evaluate leaves them, in brief."""
    job.results.parent.mkdir(parents=True)
    scores = {"linear_fast/shape": score, "linear_fast/shape_low": 0.0, "linear_fast/shape_high": 1.0}
    others = {"init/linear_fast/shape": 0.1, "init/linear_fast/shape_low": 0.0, "rank/rankme": 12.0}
    job.results.write_text(json.dumps({"about": {}, "scores": scores | others}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_job_of_every_sweep_can_start(path, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    place = path.stem.rpartition("_")[2]
    settings = {
        "scenes": [],
        "photos": ["data.path=DATA"],
        "stored": ["data.path=DATA", "captions.vectors=DATA/words/MINE"],
    }
    planned = sweep.plan(path, tmp_path, settings.get(place, ["data.path=DATA", "model.text_weights=T5"]))
    module = importlib.import_module(f"configs.sweeps.{path.stem}")
    assert len(planned) == len(module.VARIANTS) * len(module.get_sweep().seeds)
    assert f"{len(planned)} runs" in module.__doc__
    assert f"--sweep={path.relative_to(ROOT)}" in module.__doc__
    assert len({str(item.config) for item in planned}) == len(planned)  # no two jobs are the same run
    assert len({item.job.workdir for item in planned}) == len(planned)
    assert not list(tmp_path.iterdir())


def test_a_full_sweep_and_its_scenes_version_have_the_same_variants():
    names = {path.stem for path in FILES}
    for name in names:
        assert name.endswith(("_scenes", "_photos", "_stored")) or f"{name}_scenes" in names
        if name.removesuffix("_scenes") in names - {name}:
            one, other = (importlib.import_module(f"configs.sweeps.{n}") for n in (name, name.removesuffix("_scenes")))
            assert one.get_sweep().variants == other.get_sweep().variants


@pytest.mark.parametrize(
    ("before", "after", "arguments", "said"),
    [
        ("conditioner.layers", "conditioner.layer", [], "did you mean conditioner.layers?"),
        ("(0,)", "(7,)", [], "variant words, seed 0: conditioner.layers=(7,) must be"),
        ("(0,)", "'first'", [], "variant words, seed 0: conditioner.layers='first' is of the wrong type"),
        ('"train.steps": 2', '"train.seed": 2', [], "the sweep itself varies train.seed"),
        ("quickstart.py", "quick.py", [], "configs/quick.py: there is no such file"),
        ("", "", ["--set=train.stpes=3"], "train.stpes is no key of configs/base.py; did you mean train.steps?"),
        ("", "", ["--set=train.steps"], "give KEY=VALUE"),
        ("", "", ["--set=train.steps=many"], "'many' is no number"),
        ("", "", ["--set=model.conditioner=none"], "the sweep itself varies model.conditioner"),
    ],
)
def test_a_mistake_in_any_variant_is_found_before_a_job_starts(
    file, tmp_path, before, after, arguments, said, monkeypatch
):
    monkeypatch.chdir(ROOT)
    file.write_text(TINY.replace(before, after))
    with pytest.raises(UserError) as refused:
        sweep.plan(file, tmp_path / "runs", [argument.removeprefix("--set=") for argument in arguments])
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_finished_job_with_other_settings_is_refused_not_counted(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = sweep.plan(file, tmp_path / "runs", [])
    finish(planned[0].job, 0.5)
    (planned[0].job.workdir / "config.json").write_text(json.dumps(planned[0].config.to_dict()))
    sweep.plan(file, tmp_path / "runs", [])
    with pytest.raises(UserError, match="variant none, seed 0: .*captions.per_image"):
        sweep.plan(file, tmp_path / "runs", ["captions.per_image=5"])


def test_the_table_has_mean_spread_and_what_is_missing(tmp_path):
    jobs = [sweeps.Job(name, seed, tmp_path / name / str(seed), 2) for name in ("a", "b", "c") for seed in (0, 1)]
    for job, score in zip(jobs, (0.4, 0.6, 0.3)):
        finish(job, score)
    (jobs[0].workdir / "metrics.jsonl").write_text(
        '{"step": 1, "text_worth/shuffled": 0.1}\n{"step": 2, "text_worth/shuffled": 0.25}\n{"step": 3, "loss": 1.0}\n'
    )
    report = sweeps.write_table(tmp_path, "abc", jobs)
    assert "| variant | linear_fast/shape | rank/rankme | text_worth/shuffled |" in report
    assert "| a | 50.0 ± 14.1 (2) | 12.0 ± 0.0 (2) | 25.0 (1) |" in report
    assert "| b | 30.0 (1) | 12.0 (1) | missing |" in report
    assert "Gain over" not in report
    assert "| c |" not in report  # it has nothing to show, and stands in the list below
    assert report.endswith("above (3):\n\n* b, seed 1\n* c, seed 0\n* c, seed 1\n")
    assert (tmp_path / "sweep.md").read_text() == report
    with (tmp_path / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {"variant": "a", "seed": "1", "metric": "linear_fast/shape", "value": "0.6"} in rows
    assert len(rows) == 3 * 6 + 1  # every number of results.json, not only the table's
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))


def test_gains_are_paired_by_seed_and_only_clear_ones_are_bold(tmp_path):
    jobs = [sweeps.Job(name, seed, tmp_path / name / str(seed), 2) for name in ("a", "b", "c") for seed in (0, 1, 2)]
    for job, score in zip(jobs, (0.1, 0.5, 0.9, 0.14, 0.55, 0.94, 0.5, 0.1, 0.6)):
        finish(job, score)
    report = sweeps.write_table(tmp_path, "abc", jobs, baseline="a")
    gains = report.partition("Gain over a")[2]
    # Differences of 4, 5 and 4 points: mean 4.33, deviation 0.577, and t(0.975, 2) = 4.303.
    assert "| b | **+4.3** [2.9, 5.8] (3) |" in gains
    assert "| c | -10.0 [" in gains and "| a |" not in gains
    assert "| initialisation | 10.0 ± 0.0 (3) | - |" in report


def test_finished_jobs_are_skipped_and_only_one_writes_no_table(file, tmp_path):
    workdir = tmp_path / "runs"
    for name in ("none", "words"):
        for seed in (0, 3):
            finish(sweeps.Job(name, seed, workdir / name / f"seed_{seed}", 2), 0.5)
    listed = launch(file, workdir, "--list")
    assert listed.stdout.splitlines()[2] == "2: words, seed 0 (finished)"
    done = launch(file, workdir, "--only=2")
    assert (done.returncode, done.stdout) == (0, "job 2 (words, seed 0) is finished\n"), done.stderr
    assert not (workdir / "sweep.md").exists()
    beyond = launch(file, workdir, "--only=4")
    assert beyond.returncode == 2 and "numbered 0 to 3" in beyond.stderr
    done = launch(file, workdir)
    assert done.stdout.count("is finished") == 4 and "| words | 50.0 ± 0.0 (2) |" in done.stdout
    assert "launch.train" not in done.stdout


def test_a_failing_job_stops_with_its_name_command_and_log(tmp_path):
    command = [sys.executable, "-c", "print('broken'); raise SystemExit(3)"]
    with pytest.raises(
        UserError, match=r"job 1 \(a, seed 0\) failed with status 3: python -c .*; its output is in .*job.log"
    ):
        sweep.run_logged("job 1 (a, seed 0)", tmp_path, command)
    assert (tmp_path / "job.log").read_text().endswith("\nbroken\n")


def test_a_signal_is_passed_on_once_and_ends_the_sweep(tmp_path):
    """Ctrl-C, which a terminal sends to the whole group. The child notes each signal and ends by itself."""
    child = (
        "import signal, time; signal.signal(signal.SIGINT, lambda *a: print('signal', flush=True)); "
        "print('ready', flush=True); time.sleep(2)"
    )
    parent = "\n".join(
        [
            "from pathlib import Path; import sys; from launch.sweep import run_logged",
            f"run_logged('job', Path({str(tmp_path)!r}), [sys.executable, '-c', {child!r}])",
        ]
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(300):
        if (tmp_path / "job.log").exists() and "\nready" in (tmp_path / "job.log").read_text():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT and "stopped by SIGINT in job" in said
    assert (tmp_path / "job.log").read_text().count("\nsignal") == 1


@pytest.mark.slow
def test_two_variants_are_trained_evaluated_and_tabled(file, tmp_path):
    workdir = tmp_path / "runs"
    tasks = '"evaluation.tasks": "knn,rank,grounding", '
    file.write_text(TINY.replace("(0, 3)", "(3,)").replace('{"train.steps"', "{" + tasks + '"train.steps"'))
    done = launch(file, workdir)
    assert done.returncode == 0, done.stderr + "".join(log.read_text() for log in workdir.rglob("job.log"))
    config = json.loads((workdir / "words" / "seed_3" / "config.json").read_text())
    assert (config["conditioner"]["layers"], config["train"]["seed"]) == ([0], 3)
    table = (workdir / "sweep.md").read_text()
    assert "missing" not in table.lower() and "knn/count" in table and "text_worth/shuffled" in table
    results = [read_results(workdir / name / "seed_3/eval/2/results.json")["scores"] for name in ("none", "words")]
    assert ["grounding/shape" in found for found in results] == [False, True]
    pages = [(workdir / name / "seed_3/report/index.html").read_text() for name in ("none", "words")]
    assert ["error with words" in text for text in pages] == [False, True]
    assert all("What the model sees" in text and "Features in colours" in text for text in pages)
    # Two steps at the start of the warm-up leave the words where they began.
    assert results[1]["grounding/shape"] == pytest.approx(results[1]["init/grounding/shape"], abs=0.05)


def test_a_sweep_expands_and_checks_the_paths_of_its_configuration(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", "/home/me")
    planned = sweep.plan(file, tmp_path / "out", ["data.path=~/photos"])
    assert "--config.data.path=/home/me/photos" in planned[0].command
    with pytest.raises(UserError, match="data.path=gs://bucket/x"):
        sweep.plan(file, tmp_path / "out", ["data.path=gs://bucket/x"])
