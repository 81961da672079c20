"""Results for machines and for readers: results.json, results.md, and the same table on the terminal."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path

from tc_jepa.data.sources import Task
from tc_jepa.files import replace_text

METRICS = {"single": "accuracy", "multi": "mAP"}
BASELINES = {"init": "initialisation", "pixels": "pixels (16x16)"}  # key prefix -> its name in the table

Results = Mapping[str, float]  # flat, as tc_jepa.evaluation.evaluate makes it


def write_results(output: Path, results: Results, report: str) -> None:
    """Writes results.json and results.md into `output`, made if missing. Each is replaced whole or not at all."""
    output.mkdir(parents=True, exist_ok=True)
    replace_text(output / "results.json", json.dumps(results, indent=2) + "\n")
    replace_text(output / "results.md", report)


def render(results: Results, tasks: Mapping[str, Task], header: Mapping[str, object]) -> str:
    """A Markdown report: the header as a list, then a table for each protocol that ran, scores in percent."""
    lines = ["# Evaluation of a frozen encoder", ""]
    lines += [f"* {name}: {value}" for name, value in header.items()]
    for protocol in ("linear_fast", "knn"):
        ran = [name for name in tasks if f"{protocol}/{name}" in results]
        metrics = {name: METRICS[tasks[name].kind] for name in ran}
        lines += _scores(results, protocol, metrics, {name: f"chance/{name}" for name in ran})
    for protocol, metric in (("segmentation", "mIoU"), ("grounding", "pointing")):
        keys = [key.split("/") for key in results if key.endswith("_low")]
        ran = {name.removesuffix("_low"): metric for first, *_, name in keys if first == protocol}
        lines += _scores(results, protocol, ran, {name: f"chance/{protocol}/{name}" for name in ran})
    if "rank/rankme" in results:
        prefixes = ("", *(f"{name}/" for name in BASELINES))
        rows = [[key, *(f"{results[f'{prefix}rank/{key}']:.3g}" for prefix in prefixes)] for key in ("rankme", "std")]
        about = "Of the pooled test features: RankMe, and their deviation over images."
        lines += ["", "## rank", "", about, "", *_table(["measure", "trained", *BASELINES.values()], rows)]
    return "\n".join(lines) + "\n"


def _scores(results: Results, protocol: str, metrics: Mapping[str, str], chance: Mapping[str, str]) -> list[str]:
    """The section of a protocol, whose scores have the names of `metrics`; nothing where it has none."""
    if not metrics:
        return []

    def score(key: str, sign: str = "") -> str:
        if key not in results:  # pixels have no words
            return "-"
        value, low, high = (100 * results[f"{key}{end}"] for end in ("", "_low", "_high"))
        return f"{value:{sign}.1f} [{low:.1f}, {high:.1f}]"

    rows = []
    for name, metric in metrics.items():
        baselines = [score(f"{baseline}/{protocol}/{name}") for baseline in BASELINES]
        gains = [score(f"gain_over_{baseline}/{protocol}/{name}", "+") for baseline in BASELINES]
        by_chance = f"{100 * results[chance[name]]:.1f}"
        rows.append([name, metric, score(f"{protocol}/{name}"), *baselines, by_chance, *gains])
    head = [
        "task",
        "metric",
        "trained",
        *BASELINES.values(),
        "chance",
        *(f"over {name}" for name in BASELINES.values()),
    ]
    about = "Test scores in %, with 95 % bootstrap intervals over the test examples."
    return ["", f"## {protocol}", "", about, "", *_table(head, rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in (head, *rows)]
    padded.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(row)} |" for row in padded]
