"""The table of a sweep: results of its jobs side by side, with mean and spread over seeds, as CSV, Markdown, plot."""

from collections.abc import Iterable, Sequence
import csv
import io
import json
import math
from pathlib import Path
import statistics
from typing import NamedTuple

from tc_jepa.evaluation.results import BASELINES
from tc_jepa.files import replace_text, replacing
from tc_jepa.metrics import METRICS_FILE

RANK, TEXT_WORTH = "rank/rankme", "text_worth/shuffled"
COMPARISONS = (*(f"{name}/" for name in BASELINES), *(f"gain_over_{name}/" for name in BASELINES))
MISSING = "missing"


class Job(NamedTuple):
    """One variant with one seed, and the step that it is trained to."""

    variant: str
    seed: int
    workdir: Path
    steps: int

    @property
    def results(self) -> Path:
        """Where launch.evaluate leaves the results of the last step; the job is finished when they are there."""
        return self.workdir / "eval" / str(self.steps) / "results.json"


class Row(NamedTuple):
    variant: str
    seed: int
    metric: str
    value: float


def factor_of(metric: str) -> int:
    """Ranks are shown as they are, all else in percent."""
    return 1 if metric == RANK else 100


class Spread(NamedTuple):
    """Mean, sample deviation and number of some values, over seeds."""

    mean: float
    deviation: float | None  # a single value has none
    count: int

    def text(self, metric: str) -> str:
        factor = factor_of(metric)
        spread = "" if self.deviation is None else f" ± {factor * self.deviation:.1f}"
        return f"{factor * self.mean:.1f}{spread} ({self.count})"


def gather(jobs: Iterable[Job]) -> tuple[list[Row], list[Job]]:
    """Every number of the finished jobs, and the jobs that are not finished."""
    rows, missing = [], []
    for job in jobs:
        if not job.results.is_file():
            missing.append(job)
            continue
        values = json.loads(job.results.read_text()) | last_text_worth(job.workdir / METRICS_FILE)
        rows += [Row(job.variant, job.seed, metric, value) for metric, value in values.items()]
    return rows, missing


def last_text_worth(path: Path) -> dict[str, float]:
    """What words were worth at the last look at held-out images; nothing for a run without looks."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    worths = [line[TEXT_WORTH] for line in lines if TEXT_WORTH in line]
    return {TEXT_WORTH: worths[-1]} if worths else {}


def main_metrics(rows: Sequence[Row]) -> list[str]:
    """The judged encoder's own scores, its rank, and the worth of words: what the table shows."""
    names = list(dict.fromkeys(row.metric for row in rows))
    scores = [name for name in names if f"{name}_low" in names and not name.startswith(COMPARISONS)]
    return scores + [name for name in (RANK, TEXT_WORTH) if name in names]


def values_of(rows: Iterable[Row], variant: str, metric: str) -> list[float]:
    return [row.value for row in rows if (row.variant, row.metric) == (variant, metric)]


def summarise(values: Sequence[float]) -> Spread | None:
    """None for no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def write_table(directory: Path, name: str, jobs: Sequence[Job]) -> str:
    """Writes sweep.csv, sweep.md and, once there are results, sweep.png; returns the Markdown."""
    rows, missing = gather(jobs)
    variants = list(dict.fromkeys(job.variant for job in jobs))
    report = render(name, variants, rows, missing)
    directory.mkdir(parents=True, exist_ok=True)
    replace_text(directory / "sweep.csv", to_csv(rows))
    replace_text(directory / "sweep.md", report)
    if rows:
        plot(directory / "sweep.png", name, variants, rows)
    return report


def to_csv(rows: Iterable[Row]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    return file.getvalue()


def render(name: str, variants: Sequence[str], rows: Sequence[Row], missing: Sequence[Job]) -> str:
    """Variants by main metrics, and the jobs without results below."""
    metrics = main_metrics(rows)
    about = f"Mean ± standard deviation over seeds (number of seeds), in percent; {RANK} as it is."
    lines = [f"# Sweep {name}", "", about, "", _line(["variant", *metrics]), _line(["---"] * (1 + len(metrics)))]
    for variant in variants:
        spreads = [summarise(values_of(rows, variant, metric)) for metric in metrics]
        cells = [MISSING if spread is None else spread.text(metric) for metric, spread in zip(metrics, spreads)]
        lines.append(_line([variant, *cells]))
    if missing:
        lines += ["", f"Without results, and in no number above ({len(missing)}):", ""]
        lines += [f"* {job.variant}, seed {job.seed}" for job in missing]
    return "\n".join(lines) + "\n"


def plot(path: Path, name: str, variants: Sequence[str], rows: Sequence[Row]) -> None:
    """One panel a metric: every seed a dot, the mean a line, the deviation a bar; variants from top to bottom."""
    from matplotlib.figure import Figure  # not pyplot, which may want a display

    metrics = main_metrics(rows)
    columns = min(3, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(1.8 + 3.4 * columns, 0.6 + (1.0 + 0.32 * len(variants)) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    for axis, metric in zip(axes.flat, metrics):
        factor = factor_of(metric)
        for place, variant in enumerate(variants):
            values = [factor * value for value in values_of(rows, variant, metric)]
            spread = summarise(values)
            if spread is None:
                continue
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5, markersize=5)
            axis.errorbar(spread.mean, place, xerr=spread.deviation, fmt="|", color="black", capsize=3, markersize=12)
        axis.set_yticks(range(len(variants)), variants)
        axis.set_ylim(len(variants) - 0.5, -0.5)
        axis.set_title(metric if metric == RANK else f"{metric}, %", fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{name}: dots are seeds; mean and standard deviation in black", fontsize=11)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
