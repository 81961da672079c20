"""The report of a run in its workdir: one HTML page that loads nothing, from page.html.jinja."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import ml_collections
import numpy as np

from tc_jepa.config import methods
from tc_jepa.errors import UserError
from tc_jepa.evaluation import results
from tc_jepa.experiment.run import open_run
from tc_jepa.methods import reporting
from tc_jepa.methods.reporting import Diagnostic, FEATURES, Section, TRAINING
from tc_jepa.report import looks, looks_jepa, looks_lejepa
from tc_jepa.report.charts import Line, line_chart
from tc_jepa.report.looks import Gallery
from tc_jepa.report.pictures import data_uri
from tc_jepa.report.verdict import initial, judge, read_run, Run, Verdict
from tc_jepa.storage.checkpoint import saved_steps
from tc_jepa.storage.files import replace_text

REPORT = Path("report", "index.html")  # in a workdir
# Galleries that only runs of one method have, by the method's name: (run, held-out images) -> galleries.
METHOD_GALLERIES = {"jepa": looks_jepa.galleries, "lejepa": looks_lejepa.galleries}
EVALUATED = "eval/"  # prefix in metrics.jsonl of the scores of train.eval_tasks
TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tc_jepa.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["data_uri"] = data_uri


class Pictures(NamedTuple):
    """What only a checkpoint can show: galleries, and the singular values of features by encoder."""

    galleries: Sequence[Gallery]
    spectra: Mapping[str, np.ndarray]


class Chart(NamedTuple):
    svg: str
    caption: str = ""


class Charts(NamedTuple):
    """A section of charts."""

    title: str
    about: str
    charts: Sequence[Chart]


class Table(NamedTuple):
    about: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def write_report(
    configs: Mapping[Path, ml_collections.ConfigDict], settings: Mapping[str, object], commands: Sequence[str]
) -> tuple[Path, Verdict]:
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
    found = judge(run)
    pictures = pictures_of(workdir, config) if saved_steps(workdir) else None
    method = config.method.name
    learned = f"conditioner {config.model.conditioner}" if method == "jepa" else f"method {method}"
    trained = (
        f"{config.model.encoder} encoder, patch size {config.model.patch_size}, {config.image.size} px, {learned}, on "
        f"{config.data.path or f'{config.data.scenes_level} scenes'}; seed "
        f"{config.train.seed}; step {max(row['step'] for row in run.rows)} of {config.train.steps}"
    )
    text = render(run, others, found, pictures, trained=trained, settings=settings, commands=commands)
    output.parent.mkdir(exist_ok=True)
    replace_text(output, text)
    return output, found


def pictures_of(workdir: Path, config: ml_collections.ConfigDict) -> Pictures:
    """Returns the pictures of a run's newest checkpoint: features of any method, and what only its own can show."""
    run = open_run(workdir, config)
    source = run.experiment.held_out
    encoders = looks.encoders(run)
    features = looks.features_in_colours(run, encoders, source)
    own = METHOD_GALLERIES[config.method.name](run, source) if config.method.name in METHOD_GALLERIES else []
    return Pictures([features, *own], looks.spectra(encoders, source))


def render(
    main: Run,
    others: Sequence[Run],
    verdict: Verdict,
    pictures: Pictures | None,
    *,
    trained: str,
    settings: Mapping[str, object],
    commands: Sequence[str],
) -> str:
    """Returns the page about `main`, with `others` beside it in charts and in the table of scores.

    `pictures` are None for a run without a checkpoint. `trained` is a line on what was trained. The rest is as in
    write_report.
    """
    runs = [main, *others]
    sections = [Charts(x.title, x.about, _charts(x.diagnostics, runs)) for x in sections_of(runs)]
    if pictures is not None:
        spectra = {name: (range(1, 1 + len(values)), values) for name, values in pictures.spectra.items()}
        chart = Chart(line_chart("Singular values without the mean, largest as 1", spectra, log=True, x_label="number"))
        sections = [x._replace(charts=[*x.charts, chart]) if x.title == FEATURES else x for x in sections]
    no_pictures = Gallery("Pictures", "There is no checkpoint yet, and pictures are made from one.", ())
    return TEMPLATES.get_template("page.html.jinja").render(
        name=main.name,
        trained=trained,
        verdict=verdict,
        sections=[x for x in (*sections, _during_training(main)) if x.charts],
        galleries=[no_pictures] if pictures is None else pictures.galleries,
        scores=_scores(runs),
        settings={name: str(value) for name, value in settings.items()},
        commands=commands,
    )


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """Returns the sections that the runs' methods offer, and those of every method; equal titles are merged.

    Losses and held-out numbers that no method describes are there too, each with a chart of its own.
    """
    offered = [reporting.LOSS_SECTION, *(section for run in runs for section in run.diagnostics.sections)]
    last = reporting.SCHEDULES_SECTION, reporting.features_section()
    described = {one.name for section in (*offered, *last) for one in section.diagnostics}
    rest = dict.fromkeys(key for run in runs for row in run.rows for key in row if key not in described)
    for prefix, title in (("loss/", TRAINING), ("heldout/", "Held-out numbers")):
        offered.append(Section(title, "", tuple(Diagnostic(x, x, x) for x in rest if x.startswith(prefix))))
    merged: dict[str, Section] = {}
    for title, about, diagnostics in (*offered, *last):
        before = merged.get(title, Section(title, "", ()))
        abouts = dict.fromkeys(text for text in (before.about, about) if text)
        merged[title] = Section(title, " ".join(abouts), tuple(dict.fromkeys((*before.diagnostics, *diagnostics))))
    return list(merged.values())


def _charts(diagnostics: Iterable[Diagnostic], runs: Sequence[Run]) -> list[Chart]:
    """A chart for each title that there are numbers for."""
    by_title: dict[str, list[Diagnostic]] = {}
    for one in diagnostics:
        by_title.setdefault(one.chart, []).append(one)
    charts = []
    for title, group in by_title.items():
        main = runs[0].rows
        drawn = [runs[0]] if any("*" in one.name for one in group) else runs  # a line for each layer is enough
        keys = {key: label for run in drawn for one in group for key, label in one.keys(run.rows).items()}
        levels = {}
        for one in group:
            limit = one.limit(initial(main, one.name))
            if limit is not None:
                levels[f"warning {'below' if one.higher_is_better else 'above'} {limit:.3g}"] = limit
        # Numbers of the monitor are far apart.
        marks = all(reporting.RANKME in row for row in main if keys.keys() & row.keys())
        svg = line_chart(title, lines(drawn, keys), log=group[0].log_scale, levels=levels, marks=marks)
        charts.append(Chart(svg, " ".join(dict.fromkeys(one.meaning for one in group if one.meaning))))
    return [chart for chart in charts if chart.svg]


def lines(runs: Sequence[Run], keys: Mapping[str, str]) -> dict[str, Line]:
    """Returns the numbers of `keys` (key of metrics.jsonl -> label) over steps, for every run.

    A single run is not named; a single key of several runs has no label but theirs.
    """
    found = {}
    for run in runs:
        for key, label in keys.items():
            points = [(row["step"], row[key]) for row in run.rows if key in row]
            name = label if len(runs) == 1 else f"{label} ({run.name})" if len(keys) > 1 else run.name
            found[name] = ([x for x, _ in points], [y for _, y in points])
    return found


def _during_training(main: Run) -> Charts:
    """Scores of train.eval_tasks."""
    keys = dict.fromkeys(key for row in main.rows for key in row if key.startswith(EVALUATED))
    names = {key: key.removeprefix(EVALUATED) for key in keys}
    fractions = {key: name for key, name in names.items() if results.family(name)}
    charts = (
        line_chart("Scores, as fractions", lines([main], fractions), marks=True),
        line_chart("LiDAR", lines([main], {f"{EVALUATED}rank/lidar": "LiDAR"}), marks=True),
    )
    about = "The evaluation encoder, frozen at these steps, fitted and tested on train.eval_examples examples each."
    return Charts("Scores during training", about, [Chart(svg) for svg in charts if svg])


def _scores(runs: Sequence[Run]) -> Table:
    main = runs[0]
    if main.scores is None:
        return Table(f"Not evaluated yet: python -m launch.evaluate --encoder={main.name}")
    about = (
        "Frozen features on test examples, in percent, with 95 % bootstrap intervals over the examples. Written by "
        "launch.evaluate."
    )
    if main.scores_step is not None:
        about = f"Step {main.scores_step}, on {main.scores_data}. {about}"

    rows = []
    for name in results.own_scores(main.scores):
        chance = results.chance(main.scores, name)
        rows.append(
            [
                name,
                *(results.cell(run.scores or {}, name) for run in runs),
                "-" if chance is None else f"{100 * chance:.1f}",
                *(results.cell(main.scores, f"{baseline}/{name}") for baseline in results.BASELINES),
                results.cell(main.scores, f"gain_over_init/{name}", "+"),
            ]
        )
    trained = ["trained"] if len(runs) == 1 else [run.name for run in runs]
    return Table(about, ["score", *trained, "chance", *results.BASELINES.values(), "gain over initialisation"], rows)
