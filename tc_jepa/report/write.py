"""The report of a run, from its workdir into its workdir."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from tc_jepa.config import methods
from tc_jepa.errors import UserError
from tc_jepa.experiment.run import open_run
from tc_jepa.report import looks, looks_jepa, page, verdict
from tc_jepa.report.run import read_run
from tc_jepa.storage.checkpoint import saved_steps
from tc_jepa.storage.files import replace_text

REPORT = Path("report", "index.html")  # in a workdir
# Galleries that only runs of one method have, by the method's name: (run, held-out images) -> galleries.
METHOD_GALLERIES = {"jepa": looks_jepa.galleries}


def write_report(
    configs: Mapping[Path, ml_collections.ConfigDict], settings: Mapping[str, object], commands: Sequence[str]
) -> tuple[Path, verdict.Verdict]:
    """Writes the report of a run into its workdir; returns its path and what it says on top.

    UserError for a workdir without metrics, or with damaged ones.

    Args:
      configs: configuration by workdir: the run's, then those of runs to compare it with.
      settings: the flat configuration of the run.
      commands: shell commands that reproduce the run and this page.
    """
    (workdir, config), *_ = configs.items()
    output = workdir / REPORT
    if output.parent.exists() and not output.parent.is_dir():
        raise UserError(f"{output.parent} is a file, where the report's folder belongs; move it away")
    run, *others = (read_run(path, methods.chosen(own).diagnostics(own)) for path, own in configs.items())
    found = verdict.judge(run.rows, run.scores, run.diagnostics, run.scores_step)
    pictures = pictures_of(workdir, config) if saved_steps(workdir) else None
    trained = f"{described(config)}; step {max(row['step'] for row in run.rows)} of {config.train.steps}"
    text = page.render(run, others, found, pictures, trained=trained, settings=settings, commands=commands)
    output.parent.mkdir(exist_ok=True)
    replace_text(output, text)
    return output, found


def described(config: ml_collections.ConfigDict) -> str:
    """Returns what a configuration trains, in a few words."""
    data = config.data.path or f"{config.data.scenes_level} scenes"
    return (
        f"{config.model.encoder} encoder, patch size {config.model.patch_size}, {config.image.size} px, conditioner "
        f"{config.model.conditioner}, on {data}; seed {config.train.seed}"
    )


def pictures_of(workdir: Path, config: ml_collections.ConfigDict) -> page.Pictures:
    """Returns the pictures of a run's newest checkpoint: features of any method, and what only its own can show."""
    run = open_run(workdir, config)
    source = run.experiment.held_out
    encoders = looks.encoders(run)
    features = looks.features_in_colours(run, encoders, source)
    own = METHOD_GALLERIES[config.method.name](run, source) if config.method.name in METHOD_GALLERIES else []
    return page.Pictures([features, *own], looks.spectra(encoders, source))
