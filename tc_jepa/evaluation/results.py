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
        rows = [_score_row(results, protocol, name, tasks[name]) for name in ran]
        if rows:
            gains = [f"over {name}" for name in BASELINES.values()]
            head = ["task", "metric", "trained", *BASELINES.values(), "chance", *gains]
            about = "Test scores in %, with 95 % bootstrap intervals over the test examples."
            lines += ["", f"## {protocol}", "", about, "", *_table(head, rows)]
    if "rank/rankme" in results:
        prefixes = ("", *(f"{name}/" for name in BASELINES))
        rows = [[key, *(f"{results[f'{prefix}rank/{key}']:.3g}" for prefix in prefixes)] for key in ("rankme", "std")]
        about = "Of the pooled test features: RankMe, and their deviation over images."
        lines += ["", "## rank", "", about, "", *_table(["measure", "trained", *BASELINES.values()], rows)]
    return "\n".join(lines) + "\n"


def _score_row(results: Results, protocol: str, name: str, task: Task) -> list[str]:
    def score(prefix: str, sign: str = "") -> str:
        value, low, high = (100 * results[f"{prefix}{protocol}/{name}{end}"] for end in ("", "_low", "_high"))
        return f"{value:{sign}.1f} [{low:.1f}, {high:.1f}]"

    baselines = [score(f"{baseline}/") for baseline in BASELINES]
    gains = [score(f"gain_over_{baseline}/", "+") for baseline in BASELINES]
    return [name, METRICS[task.kind], score(""), *baselines, f"{100 * results[f'chance/{name}']:.1f}", *gains]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in (head, *rows)]
    padded.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(row)} |" for row in padded]
