"""The results of a sweep: its jobs side by side, mean and spread over seeds, as CSV, Markdown and a plot."""

from collections.abc import Iterable, Sequence
import math
from pathlib import Path
import re

from matplotlib.figure import Figure  # not pyplot, which may need a display
import pandas as pd
import scipy.stats

from tc_jepa.config import methods
from tc_jepa.errors import UserError
from tc_jepa.evaluation.results import BASELINES, chance, own_scores, read_results
from tc_jepa.methods.reporting import CONSTANT_SHARE, Diagnostic, held_out, RANKME, RANKME_CENTRED
from tc_jepa.storage.files import replace_text, replacing
from tc_jepa.storage.metrics_file import METRICS_FILE, read_metrics
from tc_jepa.sweeps.jobs import Job

COLUMNS = ["variant", "seed", "metric", "value"]
CHANCE = "chance"  # its name among the variants
MISSING, ABSENT = "missing", "-"  # a job has not run; a variant has no such number


def write_table(
    directory: Path, name: str, jobs: Sequence[Job], baseline: str | None = None, shown: str | None = None
) -> str:
    """Writes sweep.csv, sweep.md and, once there are results, sweep.png; returns the Markdown.

    `baseline` is the variant that the gains of the others are measured against, if any. `shown` is a regular
    expression that the whole name of a metric must match to appear in sweep.md and sweep.png; None: all do. sweep.csv
    has every number, and is written first. UserError where all jobs have results and none of their metrics matches.
    """
    values = gather(jobs)
    every = main_metrics(values, {column: one for job in jobs for column, one in offered(job).items()})
    metrics = {metric: factor for metric, factor in every.items() if shown is None or re.fullmatch(shown, metric)}
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(directory / "sweep.csv", values.to_csv(index=False))
    if shown is not None and not metrics and all(job.finished for job in jobs):  # before, one to come may match
        raise UserError(f"--metrics={shown} matches no metric of the sweep; there are {', '.join(every)}")
    report = render(name, jobs, values, metrics, baseline)
    replace_text(directory / "sweep.md", report)
    if metrics:
        plot(directory / "sweep.png", name, list(dict.fromkeys(job.variant for job in jobs)), values, metrics)
    return report


def gather(jobs: Iterable[Job]) -> pd.DataFrame:
    """Returns every number of the finished jobs, with COLUMNS: scores, and the method's held-out numbers at the end."""
    rows = []
    for job in jobs:
        if job.finished:
            values = read_results(job.results)["scores"] | last_held_out(job)
            rows += [(job.variant, job.seed, metric, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def offered(job: Job) -> dict[str, Diagnostic]:
    """Returns the held-out numbers that a job's method offers, by their names in tables.

    The worst of several layers is called such as "lowest positive_cosines".
    """
    found = {}
    for one in methods.chosen(job.config).diagnostics(job.config).compared:
        worst = f"{'lowest' if one.higher_is_better else 'highest'} {one.name.rpartition('/')[2]}"
        found[worst if "*" in one.name else one.name] = one
    return found


def last_held_out(job: Job) -> dict[str, float]:
    """Returns a job's last held-out numbers as `offered` names them; {} where it has none."""
    path = job.workdir / METRICS_FILE
    looks = held_out(read_metrics(path)) if path.is_file() else []
    found = {}
    for column, one in offered(job).items():
        if keys := one.keys(looks[-1:]):
            found[column] = one.worst([looks[-1][key] for key in keys])
    return found


def main_metrics(values: pd.DataFrame, shown: dict[str, Diagnostic]) -> dict[str, int]:
    """Returns what the table shows and the factor that it is shown times: 100 for a percentage.

    These are the evaluated encoder's own scores, its ranks and constant share, and the numbers that methods offer.
    """
    names = list(values["metric"].unique())
    factors = dict.fromkeys(own_scores(names), 100) | {RANKME_CENTRED: 1, RANKME: 1, CONSTANT_SHARE: 100}
    factors |= {column: 100 if one.percent else 1 for column, one in shown.items()}
    return {name: factor for name, factor in factors.items() if name in names}


def compared_with(values: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """Returns chance and the baselines' scores as if they were variants.

    Those of the first variant that has a score are taken. They are the same for all variants with the same encoder,
    but for scores of a text tower, whose initialisation the variant's method and size choose.
    """
    of_seed = values.drop_duplicates(["seed", "metric"]).groupby("seed", sort=False)
    scores = {seed: found.set_index("metric")["value"].to_dict() for seed, found in of_seed}
    rows = [(CHANCE, seed, metric, chance(found, metric)) for seed, found in scores.items() for metric in metrics]
    for prefix, title in BASELINES.items():
        rows += [(title, seed, x, found.get(f"{prefix}/{x}")) for seed, found in scores.items() for x in metrics]
    return pd.DataFrame([row for row in rows if row[-1] is not None], columns=COLUMNS)


def render(name: str, jobs: Sequence[Job], values: pd.DataFrame, metrics: dict[str, int], baseline: str | None) -> str:
    """Returns the report: variants with results by metric, gains over the baseline, and the jobs without results."""
    missing = [job for job in jobs if not job.finished]
    plain = [metric for metric, factor in metrics.items() if factor == 1]
    about = "Mean ± standard deviation over seeds (number of seeds), in percent"
    about += f"; {' and '.join(plain)} as they are." if plain else "."
    values = values if metrics else values[:0]
    everything = pd.concat([values, compared_with(values, metrics)]) if len(values) else values
    unfinished = {job.variant for job in missing}
    cells = {
        variant: [
            spread(by_seed(everything, variant, metric), factor) or (MISSING if variant in unfinished else ABSENT)
            for metric, factor in metrics.items()
        ]
        for variant in everything["variant"].unique()
    }
    parts = [f"# Sweep {name}", about, _markdown(metrics, cells)]
    if baseline and len(values):
        parts.append(
            f"Gain over {baseline}, paired by seed, with the 95 % interval of Student's t over seeds. Bold: the "
            "interval excludes 0; these runs cannot distinguish any other gain from none."
        )
        cells = {
            variant: [
                gain(by_seed(values, variant, metric), by_seed(values, baseline, metric), factor) or ABSENT
                for metric, factor in metrics.items()
            ]
            for variant in values["variant"].unique()
            if variant != baseline
        }
        parts.append(_markdown(metrics, cells))
    if missing:
        parts.append(f"Without results, and not in the numbers above ({len(missing)}):")
        parts.append("\n".join(f"* {job}" for job in missing))
    return "\n\n".join(part for part in parts if part) + "\n"


def by_seed(values: pd.DataFrame, variant: str, metric: str) -> pd.Series:
    """Returns a metric of a variant, indexed by seed."""
    return values[(values["variant"] == variant) & (values["metric"] == metric)].set_index("seed")["value"]


def spread(values: pd.Series, factor: int) -> str:
    """Returns "mean ± sample standard deviation (count)"; a single value has no deviation, and none is ""."""
    if not len(values):
        return ""
    values = factor * values
    deviation = f" ± {values.std(skipna=False):.1f}" if len(values) > 1 else ""
    return f"{values.mean(skipna=False):.1f}{deviation} ({len(values)})"


def gain(variant: pd.Series, baseline: pd.Series, factor: int) -> str:
    """Returns "mean [low, high] (count)" of the differences of the seeds that both have, bold where 0 is excluded.

    With fewer than two such seeds there is no interval: "".
    """
    seeds = variant.index.intersection(baseline.index)
    if len(seeds) < 2:
        return ""
    gains = factor * (variant[seeds] - baseline[seeds])
    mean = gains.mean(skipna=False)
    reach = scipy.stats.t.ppf(0.975, len(seeds) - 1) * gains.sem(skipna=False)
    low, high = mean - reach, mean + reach
    number = f"**{mean:+.1f}**" if low > 0 or high < 0 else f"{mean:+.1f}"
    return f"{number} [{low:.1f}, {high:.1f}] ({len(seeds)})"


def _markdown(metrics: Iterable[str], cells: dict[str, list[str]]) -> str:
    """Cells by variant as a table: a row per variant, or per metric where there are more of those."""
    table = pd.DataFrame(cells, index=pd.Index(list(metrics), name="metric"), dtype=str)
    if len(table) <= len(table.columns):
        table = table.T.rename_axis("variant")
    return table.to_markdown(disable_numparse=True) if cells else ""


def plot(path: Path, name: str, variants: Sequence[str], values: pd.DataFrame, metrics: dict[str, int]) -> None:
    """Draws a panel per metric: a dot per seed, mean and standard deviation in black; variants from top to bottom."""
    columns = min(3, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(1.8 + 3.4 * columns, 0.6 + (1.0 + 0.32 * len(variants)) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    for axis, (metric, factor) in zip(axes.flat, metrics.items()):
        for row, variant in enumerate(variants):
            own = factor * by_seed(values, variant, metric)
            if not len(own):
                continue
            deviation = own.std() if len(own) > 1 else None
            axis.plot(own, [row] * len(own), "o", color="tab:blue", alpha=0.5, markersize=5)
            axis.errorbar(own.mean(), row, xerr=deviation, fmt="|", color="black", capsize=3, markersize=12)
        axis.set_yticks(range(len(variants)), variants)
        axis.set_ylim(len(variants) - 0.5, -0.5)
        axis.set_title(f"{metric}, %" if factor == 100 else metric, fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{name}: dots are seeds; mean and standard deviation in black", fontsize=11)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120, format="png")
