"""The table of a sweep: results of its jobs side by side, with mean and spread over seeds, as CSV, Markdown, plot."""

from collections.abc import Iterable, Mapping, Sequence
import csv
import io
import json
import math
from pathlib import Path
import statistics
from typing import NamedTuple

import scipy.stats

from tc_jepa.evaluation.results import BASELINES, read_results
from tc_jepa.monitoring.progress import METRICS_FILE
from tc_jepa.storage.files import replace_text, replacing

RANK, TEXT_WORTH = "rank/rankme", "text_worth/shuffled"
POSITIVE, ENTROPY = "lowest positive_cosines", "highest attention_entropy"  # of all layers, at the last look
HELD_OUT = "heldout/prediction"
LOOKS = (TEXT_WORTH, HELD_OUT, POSITIVE, ENTROPY)
AS_THEY_ARE = (RANK, HELD_OUT)  # all else is shown in percent
COMPARISONS = (*(f"{name}/" for name in BASELINES), *(f"gain_over_{name}/" for name in BASELINES))
MISSING, ABSENT = "missing", "-"  # a job has not run; a variant has no such number


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
    return 1 if metric in AS_THEY_ARE else 100


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
        values = read_results(job.results)["scores"] | last_look(job.workdir / METRICS_FILE)
        rows += [Row(job.variant, job.seed, metric, value) for metric, value in values.items()]
    return rows, missing


def last_look(path: Path) -> dict[str, float]:
    """LOOKS at held-out images, as of the last; nothing for a run without looks, TEXT_WORTH alone without attention."""
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    looks = [line for line in lines if TEXT_WORTH in line]
    if not looks:
        return {}
    found = {name: looks[-1][name] for name in (TEXT_WORTH, HELD_OUT) if name in looks[-1]}
    for name, kind, worst in ((POSITIVE, "positive_cosines", min), (ENTROPY, "attention_entropy", max)):
        layers = [value for key, value in looks[-1].items() if key.endswith(f"/{kind}")]
        found |= {name: worst(layers)} if layers else {}
    return found


def baseline_rows(rows: Sequence[Row]) -> list[Row]:
    """The baselines' scores as if they were variants. They depend on the seed alone: the first variant's are taken."""
    found = {}
    for row in rows:
        prefix, _, metric = row.metric.partition("/")
        if prefix in BASELINES:
            found.setdefault((prefix, row.seed, metric), row.value)
    return [Row(BASELINES[prefix], seed, metric, value) for (prefix, seed, metric), value in found.items()]


def main_metrics(rows: Sequence[Row]) -> list[str]:
    """The judged encoder's own scores, its rank, and the worth of words: what the table shows."""
    names = list(dict.fromkeys(row.metric for row in rows))
    scores = [name for name in names if f"{name}_low" in names and not name.startswith(COMPARISONS)]
    return scores + [name for name in (RANK, *LOOKS) if name in names]


def values_of(rows: Iterable[Row], variant: str, metric: str) -> list[float]:
    return [row.value for row in rows if (row.variant, row.metric) == (variant, metric)]


def summarise(values: Sequence[float]) -> Spread | None:
    """None for no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


class Gain(NamedTuple):
    """What a variant gains over another in the mean over seeds, with the 95 % interval of Student's t."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def text(self, metric: str) -> str:
        mean, low, high = (factor_of(metric) * value for value in self[:3])
        number = f"**{mean:+.1f}**" if self.clear else f"{mean:+.1f}"
        return f"{number} [{low:.1f}, {high:.1f}] ({self.count})"


def gain(rows: Sequence[Row], variant: str, baseline: str, metric: str) -> Gain | None:
    """Paired by seed. None for fewer than two seeds that both have: one says nothing of the spread."""
    scores = [
        {row.seed: row.value for row in rows if (row.variant, row.metric) == (name, metric)}
        for name in (variant, baseline)
    ]
    differences = [scores[0][seed] - scores[1][seed] for seed in scores[0].keys() & scores[1].keys()]
    if len(differences) < 2:
        return None
    mean, count = statistics.fmean(differences), len(differences)
    reach = scipy.stats.t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Gain(mean, mean - reach, mean + reach, count)


def write_table(directory: Path, name: str, jobs: Sequence[Job], baseline: str | None = None) -> str:
    """Writes sweep.csv, sweep.md and, once there are results, sweep.png; returns the Markdown."""
    rows, missing = gather(jobs)
    variants = list(dict.fromkeys(job.variant for job in jobs))
    report = render(name, variants, rows, missing, baseline)
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


def render(
    name: str, variants: Sequence[str], rows: Sequence[Row], missing: Sequence[Job], baseline: str | None = None
) -> str:
    """Variants that have any result by main metrics; gains over `baseline`, if any; and the jobs without results."""
    metrics, unfinished = main_metrics(rows), {job.variant for job in missing}
    compared = baseline_rows(rows)
    cells, begun = {}, {row.variant for row in rows}
    for variant in (*(one for one in variants if one in begun), *(row.variant for row in compared)):
        spreads = [summarise(values_of([*rows, *compared], variant, metric)) for metric in metrics]
        absent = MISSING if variant in unfinished else ABSENT
        cells[variant] = [absent if one is None else one.text(metric) for metric, one in zip(metrics, spreads)]
    about = (
        f"Mean ± standard deviation over seeds (number of seeds), in percent; {' and '.join(AS_THEY_ARE)} as they are."
    )
    lines = [f"# Sweep {name}", "", about, "", *_table(metrics, cells)]
    if baseline and rows:
        cells = {}
        for variant in variants:
            if variant != baseline:
                gains = [gain(rows, variant, baseline, metric) for metric in metrics]
                cells[variant] = [ABSENT if one is None else one.text(metric) for metric, one in zip(metrics, gains)]
        about = (
            f"Gain over {baseline}, paired by seed, with the 95 % interval of Student's t over seeds. Bold: the "
            "interval leaves 0 out; any other is no difference that these runs can tell."
        )
        lines += ["", about, "", *_table(metrics, cells)]
    if missing:
        lines += ["", f"Without results, and in no number above ({len(missing)}):", ""]
        lines += [f"* {job.variant}, seed {job.seed}" for job in missing]
    return "\n".join(lines) + "\n"


def _table(metrics: Sequence[str], cells: Mapping[str, Sequence[str]]) -> list[str]:
    """Cells by variant as Markdown: a line for each variant, or for each metric where those are more."""
    if len(metrics) > len(cells):
        head = ["metric", *cells]
        rows = [[metric, *(column[i] for column in cells.values())] for i, metric in enumerate(metrics)]
    else:
        head = ["variant", *metrics]
        rows = [[variant, *row] for variant, row in cells.items()]
    return [_line(row) for row in (head, ["---"] * len(head), *rows)]


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
        axis.set_title(metric if metric in AS_THEY_ARE else f"{metric}, %", fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(f"{name}: dots are seeds; mean and standard deviation in black", fontsize=11)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
