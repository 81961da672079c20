"""From workdirs to a report, for launch.report and for the end of launch.train."""

from collections.abc import Sequence
import json
from pathlib import Path
import shlex

from configs import base
from launch import common
from tc_jepa.config import methods, models
from tc_jepa.errors import UserError
from tc_jepa.evaluation.results import read_results
from tc_jepa.experiment.run import open_run
from tc_jepa.monitoring.progress import METRICS_FILE
from tc_jepa.report import looks, page, verdict
from tc_jepa.storage.checkpoint import saved_steps
from tc_jepa.storage.files import replace_text

REPORT = Path("report", "index.html")  # in a workdir


def write_report(workdir: Path, others: Sequence[Path] = ()) -> tuple[Path, verdict.Verdict]:
    """Writes the report of a run into its workdir. UserError for a workdir that no run has written metrics into."""
    config = common.run_config(workdir)
    output = workdir / REPORT
    if output.parent.exists() and not output.parent.is_dir():
        raise UserError(f"{output.parent} is a file, where the report's folder belongs; move it away")
    runs = [read_run(path) for path in (workdir, *others)]
    found = verdict.judge(
        runs[0].rows,
        runs[0].scores,
        reads_captions=methods.chosen(config).reads_captions(config),
        rectified=config.objective.regulariser == "rectified_cosine" and config.objective.sparsity > 0,
        scores_step=runs[0].scores_step,
    )
    steps = [row["step"] for row in runs[0].rows]
    data = config.data.path or f"{config.data.scenes_level} scenes"
    about = (
        f"{config.model.encoder} encoder, patch {config.model.patch_size}, {config.image.size} px, "
        f"{config.model.conditioner}, on {data}; seed {config.train.seed}; step {max(steps)} of {config.train.steps}"
    )
    text = page.render(
        runs[0],
        runs[1:],
        found,
        pictures_of(workdir, config) if saved_steps(workdir) else None,
        about=about,
        settings=base.flatten(config),
        commands=commands(workdir, config, others),
    )
    output.parent.mkdir(exist_ok=True)
    replace_text(output, text)
    return output, found


def read_run(workdir: Path) -> page.Run:
    """Its metrics, and the results in eval/STEP of the last step that was evaluated."""
    path = workdir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{workdir} holds no {METRICS_FILE}; give the --workdir of a training run")
    # A kill, or a run that is writing just now, leaves a last line without its end.
    lines = path.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    if not rows:
        raise UserError(f"{path} is empty: the run has logged nothing yet")
    evaluated = {int(p.parent.name): p for p in workdir.glob("eval/*/results.json") if p.parent.name.isdigit()}
    step = max(evaluated, default=None)
    if step is None:
        return page.Run(str(workdir), rows, None)
    found = read_results(evaluated[step])
    return page.Run(str(workdir), rows, found["scores"], step, found["about"]["data"])


def pictures_of(workdir: Path, config) -> page.Pictures:
    run = open_run(workdir, config)
    source, grid = run.experiment.held_out, models.grid(config)
    encoders = looks.encoders(run)
    no_words, seen = "", []
    if not run.experiment.method.attends_to_words:
        no_words = f"No maps of words: model.conditioner={config.model.conditioner} has no attention to them."
    elif run.experiment.words:
        no_words = "No maps of words: the run read stored vectors, not texts."
    else:
        seen = looks.word_looks(run, source)
        no_words = "No maps of words: the held-out images have no captions."
    return page.Pictures(
        step=run.step,
        inputs=looks.inputs(run.experiment),
        spectra=looks.spectra(encoders, source),
        pca=looks.pca(encoders, looks.crops(source, looks.SHOWN, config.image.size), grid),
        words=seen,
        no_words=no_words,
    )


def commands(workdir: Path, config, others: Sequence[Path]) -> list[str]:
    """The run from nothing but the defaults, its evaluation, and this page."""
    defaults, chosen = base.flatten(base.get_config()), base.flatten(config)
    changed = [f"--config.{name}={chosen[name]}" for name in defaults if chosen[name] != defaults[name]]
    train = ["python", "-m", "launch.train", "--config=configs/base.py", *changed, f"--workdir={workdir}"]
    report = ["python", "-m", "launch.report", f"--workdir={workdir}", *(f"--compare={path}" for path in others)]
    return [
        shlex.join(train),
        shlex.join(["python", "-m", "launch.evaluate", f"--encoder={workdir}"]),
        shlex.join(report),
    ]
