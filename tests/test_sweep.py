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

from configs import scenes_standard
from launch import sweep
from tc_jepa.errors import UserError
from tc_jepa.evaluation.results import read_results
from tc_jepa.sweeps import jobs, table

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "sweeps").glob("[!_]*.py"))
SWEEPS = {
    f"{path.stem}:{name}": (path, one)
    for path in FILES
    for name, one in importlib.import_module(f"configs.sweeps.{path.stem}").SWEEPS.items()
}
# What each of them leaves to the user.
LEFT = {
    "scenes": [],
    "crossed": [],
    "equal_time": [],
    "screened": [],
    "seeds": [],
    "words": [],
    "photos": ["data.path=DATA"],
    "photos_stored": ["data.path=DATA", "captions.vectors=DATA/words/MINE"],
    "imagenet": ["data.path=DATA", "model.text_weights=T5"],
    "yfcc15m": ["data.path=DATA", "model.text_weights=T5"],
}
# Nano networks and two steps: what a sweep does, without what it is for.
TINY = """
from configs.sweeps import Sweep
short = {"train.steps": 2, "train.batch_size": 8, "evaluation.train_examples": 300, "evaluation.test_examples": 200}
variants = {"none": {"model.conditioner": "none"}, "words": {"conditioner.layers": (0,)}}
SWEEPS = {"tiny": Sweep("configs/scenes_standard.py", short, variants, seeds=(0, 3))}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


def plan(text, workdir: Path, *assignments: str) -> list[jobs.Job]:
    return sweep.plan(sweep.load(str(text))[1], workdir, assignments)


def cells(markdown: str) -> dict[str, list[str]]:
    """The rows of the tables by their first cell; of two tables the last."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows}


def launch(path: Path, workdir: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={path}", f"--workdir={workdir}", *arguments]
    environment = os.environ | {"XLA_FLAGS": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            said = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its job, which has a session of its own
            raise
    return subprocess.CompletedProcess(command, process.returncode, *said)


def job(variant: str, seed: int, workdir: Path) -> jobs.Job:
    config = scenes_standard.get_config()
    config.train.steps = 2
    return jobs.Job(variant, seed, workdir, config, [])


def finish(one: jobs.Job, score: float) -> None:
    """Results as launch.evaluate writes them, in brief."""
    one.results.parent.mkdir(parents=True)
    scores = {"linear_fast/shape": score, "linear_fast/shape_low": 0.0, "linear_fast/shape_high": 1.0}
    others = {"init/linear_fast/shape": 0.1, "init/linear_fast/shape_low": 0.0, "rank/rankme": 12.0}
    one.results.write_text(json.dumps({"about": {}, "scores": scores | others | {"chance/shape": 0.05}}))


@pytest.mark.parametrize("text", SWEEPS)
def test_every_job_of_every_sweep_can_start(text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path, one = SWEEPS[text]
    planned = plan(f"{path}:{text.partition(':')[2]}", tmp_path, *LEFT[text.partition(":")[2]])
    assert len(planned) == len(one.variants) * len(one.seeds)
    assert (
        f"{text.partition(':')[2]}: {len(planned)} runs"
        in importlib.import_module(f"configs.sweeps.{path.stem}").__doc__
    )
    assert len({str(job.config) for job in planned}) == len(planned)  # no two jobs are the same run
    assert len({job.workdir for job in planned}) == len(planned)
    assert not list(tmp_path.iterdir())


def test_the_paper_s_ablations_have_the_same_variants_on_scenes():
    for path in FILES:
        if path.stem not in ("choices", "evidence", "levers", "rivals", "stability"):
            full, scenes = importlib.import_module(f"configs.sweeps.{path.stem}").SWEEPS.values()
            assert full.variants == scenes.variants and scenes.config == "configs/scenes_standard.py"


@pytest.mark.parametrize(
    ("before", "after", "arguments", "named"),
    [
        ("conditioner.layers", "conditioner.layer", [], ["conditioner.layers"]),
        ("(0,)", "(7,)", [], ["variant words, seed 0", "conditioner.layers=(7,)"]),
        ("(0,)", "'first'", [], ["variant words, seed 0", "conditioner.layers='first'"]),
        ('"train.steps": 2', '"train.seed": 2', [], ["train.seed"]),
        ("scenes_standard.py", "quick.py", [], ["configs/quick.py"]),
        ("SWEEPS", "SWEEP", [], ["tiny.py", "SWEEPS"]),
        ("(0, 3)", "(0, 3), baseline='nothing'", [], ["'nothing'", "none, words"]),
        ("", "", ["train.stpes=3"], ["train.stpes", "train.steps"]),
        ("", "", ["train.steps"], ["--set=train.steps"]),
        ("", "", ["train.steps=many"], ["--set=train.steps=many"]),
        ("", "", ["model.conditioner=none"], ["variant none", "model.conditioner"]),
        ("", "", ["masking.ratio=(0.1,0.2)"], ["variant none", "masking.ratio"]),
        ("(0,)", "(0,), 'objective.temperature': 1.0", [], ["variant words", "objective.temperature"]),
        ("scenes_standard.py", "paper.py:nothing", [], ["configs/paper.py:nothing"]),
    ],
)
def test_a_mistake_in_any_variant_is_found_before_a_job_starts(
    file, tmp_path, before, after, arguments, named, monkeypatch
):
    monkeypatch.chdir(ROOT)
    file.write_text(TINY.replace(before, after))
    with pytest.raises(UserError) as refused:
        plan(file, tmp_path / "runs", *arguments)
    assert all(name in str(refused.value) for name in named) and "\n" not in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_chosen_by_name_and_the_first_without(file):
    file.write_text(TINY + 'SWEEPS["other"] = SWEEPS["tiny"]._replace(seeds=(7,))')
    assert sweep.load(str(file))[0] == "tiny:tiny" and sweep.load(f"{file}:other")[1].seeds == (7,)
    with pytest.raises(UserError, match="'third'.*tiny, other"):
        sweep.load(f"{file}:third")


def test_a_finished_job_with_other_settings_is_refused_not_counted(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    first = plan(file, tmp_path / "runs")[0]
    finish(first, 0.5)
    (first.workdir / "config.json").write_text(json.dumps(first.config.to_dict()))
    plan(file, tmp_path / "runs")
    plan(file, tmp_path / "runs", "captions.per_image=5")  # the variant reads no captions
    with pytest.raises(UserError, match="variant none, seed 0: .*image.crop_scale"):
        plan(file, tmp_path / "runs", "image.crop_scale=(0.4, 1.0)")


def test_settings_that_a_variant_makes_unused_are_left_out_of_its_command(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = plan(file, tmp_path / "runs", "captions.words=16")
    assert [one.variant for one in planned] == ["none", "none", "words", "words"]
    assert ["--config.captions.words=16" in one.train for one in planned] == [False, False, True, True]


def test_the_table_has_mean_spread_chance_and_what_is_missing(tmp_path):
    planned = [job(name, seed, tmp_path / name / str(seed)) for name in ("a", "b", "c") for seed in (0, 1)]
    for one, score in zip(planned, (0.4, 0.6, 0.3)):
        finish(one, score)
    held_out = '"rank/rankme": 5.0, "layer_0/positive_cosines": 0.5, "layer_1/positive_cosines": 0.25'
    (planned[0].workdir / "metrics.jsonl").write_text(
        f'{{"step": 1, "text_worth/shuffled": 0.1, {held_out}}}\n'
        f'{{"step": 2, "text_worth/shuffled": 0.25, {held_out}}}\n{{"step": 3, "loss": 1.0}}\n'
    )
    report = table.write_table(tmp_path, "abc", planned)
    rows = cells(report)
    assert rows["variant"] == ["linear_fast/shape", "rank/rankme", "text_worth/shuffled", "lowest positive_cosines"]
    assert rows["a"] == ["50.0 ± 14.1 (2)", "12.0 ± 0.0 (2)", "25.0 (1)", "25.0 (1)"]
    assert rows["b"] == ["30.0 (1)", "12.0 (1)", "missing", "missing"]
    assert rows["chance"] == ["5.0 ± 0.0 (2)", "-", "-", "-"]
    assert rows["initialisation"] == ["10.0 ± 0.0 (2)", "-", "-", "-"]
    assert "c" not in rows  # it has nothing to show and is listed below
    assert "Gain over" not in report
    assert report.endswith("(3):\n\n* b, seed 1\n* c, seed 0\n* c, seed 1\n")
    assert (tmp_path / "sweep.md").read_text() == report
    with (tmp_path / "sweep.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {"variant": "a", "seed": "1", "metric": "linear_fast/shape", "value": "0.6"} in rows
    assert len(rows) == 3 * 7 + 2  # every number of results.json, not only the table's
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.tmp"))
    assert cells(table.write_table(tmp_path, "abc", planned, shown="rank/.*"))["variant"] == ["rank/rankme"]
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 1 + len(rows)
    assert "|" not in table.write_table(tmp_path, "abc", planned, shown="knn/.*")  # jobs to come may have it
    with pytest.raises(UserError, match="knn/.*linear_fast/shape"):
        table.write_table(tmp_path, "abc", planned[:2], shown="knn/.*")


def test_a_sweep_without_results_lists_its_jobs(tmp_path):
    report = table.write_table(tmp_path, "abc", [job("a", 0, tmp_path / "a")], baseline="a")
    assert report.endswith("(1):\n\n* a, seed 0\n") and "|" not in report
    assert not (tmp_path / "sweep.png").exists()


def test_gains_are_paired_by_seed_and_only_clear_ones_are_bold(tmp_path):
    planned = [job(name, seed, tmp_path / name / str(seed)) for name in ("a", "b", "c") for seed in (0, 1, 2)]
    for one, score in zip(planned, (0.1, 0.5, 0.9, 0.14, 0.55, 0.94, 0.5, 0.1, 0.6)):
        finish(one, score)
    report, _, gains = table.write_table(tmp_path, "abc", planned, baseline="a").partition("Gain over a")
    # Differences of 4, 5 and 4 points: mean 4.33, deviation 0.577, and t(0.975, 2) = 4.303.
    rows = cells(gains)
    assert rows["b"] == ["**+4.3** [2.9, 5.8] (3)", "+0.0 [0.0, 0.0] (3)"]
    assert rows["c"][0].startswith("-10.0 [") and "a" not in rows
    assert cells(report)["initialisation"] == ["10.0 ± 0.0 (3)", "-"]


def test_finished_jobs_are_skipped_and_only_one_writes_no_table(file, tmp_path):
    workdir = tmp_path / "runs"
    for name in ("none", "words"):
        for seed in (0, 3):
            finish(job(name, seed, workdir / name / f"seed_{seed}"), 0.5)
    listed = launch(file, workdir, "--list")
    assert listed.stdout.splitlines()[2] == "2: words, seed 0 (finished)"
    done = launch(file, workdir, "--only=2")
    assert (done.returncode, done.stdout) == (0, "job 2 (words, seed 0) is finished\n"), done.stderr
    assert not (workdir / "sweep.md").exists()
    beyond = launch(file, workdir, "--only=4")
    assert beyond.returncode == 2 and "--only=4" in beyond.stderr
    beyond = launch(file, workdir, "--metrics=(")
    assert beyond.returncode == 2 and "--metrics=(" in beyond.stderr
    beyond = launch(file, workdir, "--metrics=nothing")
    assert beyond.returncode == 2 and "--metrics=nothing" in beyond.stderr
    assert (workdir / "sweep.csv").exists() and not (workdir / "sweep.md").exists()
    done = launch(file, workdir, "--metrics=")
    assert done.stdout.count("is finished") == 4 and cells(done.stdout)["words"] == ["50.0 ± 0.0 (2)", "12.0 ± 0.0 (2)"]
    assert "launch.train" not in done.stdout


def test_a_failing_job_stops_with_its_name_command_and_log(tmp_path):
    command = [sys.executable, "-c", "print('broken'); raise SystemExit(3)"]
    with pytest.raises(
        UserError, match=r"job 1 \(a, seed 0\) failed with status 3: python -c .*; its output is in .*job.log"
    ):
        jobs.run_command("job 1 (a, seed 0)", tmp_path, command)
    assert (tmp_path / "job.log").read_text().endswith("\nbroken\n")


def test_a_signal_is_passed_on_once_and_ends_the_sweep(tmp_path):
    """Ctrl-C, which a terminal sends to the whole group. The child notes each signal and ends by itself."""
    child = (
        "import signal, time; signal.signal(signal.SIGINT, lambda *a: print('signal', flush=True)); "
        "print('ready', flush=True); time.sleep(2)"
    )
    parent = "\n".join(
        [
            "from pathlib import Path; import sys; from tc_jepa.sweeps.jobs import run_command",
            f"run_command('job', Path({str(tmp_path)!r}), [sys.executable, '-c', {child!r}])",
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
    text = (workdir / "sweep.md").read_text()
    assert "missing" not in text.lower() and "knn/count" in text and "text_worth/shuffled" in text
    results = [read_results(workdir / name / "seed_3/eval/2/results.json")["scores"] for name in ("none", "words")]
    assert ["grounding/shape" in found for found in results] == [False, True]
    pages = [(workdir / name / "seed_3/report/index.html").read_text() for name in ("none", "words")]
    assert ["error with captions" in text for text in pages] == [False, True]
    assert all("What the model sees" in text and "Features in colours" in text for text in pages)
    # Two steps at the start of the warm-up leave the words where they began.
    assert results[1]["grounding/shape"] == pytest.approx(results[1]["init/grounding/shape"], abs=0.05)


def test_a_sweep_expands_and_checks_the_paths_of_its_configuration(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", "/home/me")
    planned = plan(file, tmp_path / "out", "data.path=~/photos")
    assert "--config.data.path=/home/me/photos" in planned[0].train
    with pytest.raises(UserError, match="data.path=gs://bucket/x"):
        plan(file, tmp_path / "out", "data.path=gs://bucket/x")
