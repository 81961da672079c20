"""Results for machines and for readers: results.json, results.md, and the same table on the terminal."""

from collections.abc import Mapping, Sequence
import csv
import io
import json
from pathlib import Path

from tc_jepa.data.sources import Task
from tc_jepa.errors import UserError
from tc_jepa.evaluation.findings import Findings
from tc_jepa.storage.files import replace_text

RESULTS, REPORT = "results.json", "results.md"
# What lies beside them: confusions as a table, and the pictures of report.evaluated.
TABLE, CONFUSION, LABEL_MAPS, SWEEP = "confusion_{}.csv", "confusion_{}.png", "segmentation_{}.png", "sweep_{}.svg"
NEIGHBOURS = "neighbours.png"
METRICS = {"single": "accuracy", "multi": "mAP"}
BASELINES = {"init": "initialisation", "pixels": "pixels (16x16)"}  # key prefix -> its name in the table
COMPARED = "compared"  # prefix of the encoder of --compare
BESIDE = BASELINES | {COMPARED: "compared"}
# Scores of tasks with labels, in the order of the report, and what they are.
PROBED = {
    "linear": "VISSL's linear probe: the best of 24 heads on train examples that they were not fitted on.",
    "linear_fast": "Logistic regression, fitted to the optimum.",
    "attentive": "One cross-attention block with a learned query, then a linear layer.",
    "knn": "The 20 nearest by cosine.",
    "knn_10": "The 10 nearest by cosine.",
    "lowshot_1": "linear_fast on 1 % of the labels, mean over 5 draws.",
    "lowshot_10": "linear_fast on 10 % of the labels, mean over 5 draws.",
}
# Scores with names of their own: metric, and what they are.
NAMED = {
    "segmentation": ("mIoU", "A linear layer on patch features, enlarged bilinearly."),
    "segmentation_knn": ("mIoU", "The 20 nearest patches of the train images, by cosine."),
    "grounding": ("pointing", "How often the patch that a word speaks to most is its object's."),
    "grounding_iou": ("IoU", "A word's map, cut at one threshold, against its object."),
}
RANKS = {
    "rankme": "RankMe, pooled",
    "lidar": "LiDAR, pooled",
    "participation": "participation ratio, pooled",
    "std": "deviation over images, pooled",
    "patch_rankme": "RankMe, patches",
    "patch_participation": "participation ratio, patches",
    "patch_std": "deviation over images, patches",
}

Results = Mapping[str, float]  # flat, as Findings.scores


def write_results(output: Path, findings: Findings, about: Mapping[str, object], report: str) -> None:
    """Writes results.json, results.md and the confusions as CSV into `output`, made if missing.

    Each file is replaced whole or not at all, results.json last: where it is, the others are. It names the CSVs and the
    pictures, which report.evaluated draws next. An earlier one goes first, with all that it names, so that a kill
    leaves no files of two evaluations; what has just been written of these same findings stays.
    """
    output.mkdir(parents=True, exist_ok=True)
    whole = {
        "about": dict(about),
        "scores": findings.scores,
        "seconds": findings.seconds,
        "sweeps": {
            name: [{"setting": setting, "rate": rate, "score": score} for (setting, rate), score in sweep.items()]
            for name, sweep in findings.sweeps.items()
        },
        "chosen": findings.chosen,
        "files": files_beside(findings),
    }
    text = json.dumps(whole, indent=2) + "\n"
    _remove_earlier(output, text)
    for task, found in findings.confusions.items():
        file = io.StringIO()
        rows = csv.writer(file)
        rows.writerow([f"true class ({found.probe})", *found.classes])
        rows.writerows([name, *row] for name, row in zip(found.classes, found.counts.tolist()))
        replace_text(output / file_name(TABLE, task), file.getvalue())
    replace_text(output / REPORT, report)
    replace_text(output / RESULTS, text)


def _remove_earlier(output: Path, text: str) -> None:
    """Removes the results that lie in `output` with the files that they name, unless they are `text`."""
    path = output / RESULTS
    if not path.is_file() or path.read_bytes() == text.encode():
        return
    try:
        files = read_results(path).get("files")
    except UserError:  # it names no files, and is replaced
        return
    names = [REPORT, *files] if isinstance(files, list) else [REPORT]
    for file in output.iterdir():  # and not along the names, which may lead elsewhere
        if file.name in names and not file.is_dir():
            file.unlink()
    path.unlink(missing_ok=True)  # last: it is what the others are found by


def files_beside(findings: Findings) -> list[str]:
    """The names of what is written of findings beside results.json and results.md."""
    by_form = {
        TABLE: findings.confusions,
        CONFUSION: findings.confusions,
        LABEL_MAPS: findings.label_maps,
        SWEEP: findings.sweeps,
    }
    names = [file_name(form, name) for form, found in by_form.items() for name in found]
    return names + [NEIGHBOURS] * (findings.neighbours is not None)


def file_name(form: str, name: str) -> str:
    """Of what is written of a task or a score."""
    return form.format(name.replace("/", "_"))


def read_results(path: Path) -> dict:
    """A results.json, with "about" and "scores". UserError for one of before it said what it is about, or another's."""
    mend = "evaluate anew, or move it away"
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no JSON, and none of launch.evaluate's; {mend}") from error
    if not isinstance(found, dict) or not {"about", "scores"} <= found.keys():
        raise UserError(f"{path} was written by an earlier version; {mend}")
    return found


def render(findings: Findings, tasks: Mapping[str, Task], header: Mapping[str, object]) -> str:
    """A Markdown report: the header as a list, then a table for each score, in percent."""
    scores = findings.scores
    lines = ["# Evaluation of a frozen encoder", ""]
    lines += [f"* {name}: {value}" for name, value in header.items()]
    for probe, about in PROBED.items():
        ran = [name for name in tasks if f"{probe}/{name}" in scores]
        metrics = {name: METRICS[tasks[name].kind] for name in ran}
        lines += _scores(findings, probe, metrics, {name: f"chance/{name}" for name in ran}, about)
    for score, (metric, about) in NAMED.items():
        keys = [key.split("/") for key in scores if key.endswith("_low") and key.count("/") == 1]
        ran = {name.removesuffix("_low"): metric for first, name in keys if first == score}
        lines += _scores(findings, score, ran, {name: f"chance/{score}/{name}" for name in ran}, about)
        lines += _classes(scores, score, list(ran))
    if "rank/rankme" in scores:
        lines += _ranks(scores)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in findings.seconds.items())
    lines += ["", f"Wall time in seconds: {seconds}; {sum(findings.seconds.values()):.1f} in all."]
    return "\n".join(lines) + "\n"


def _beside(scores: Results, prefixes: Mapping[str, str]) -> dict[str, str]:
    return {name: title for name, title in prefixes.items() if any(key.startswith(f"{name}/") for key in scores)}


def _scores(
    findings: Findings, score: str, metrics: Mapping[str, str], chance: Mapping[str, str], about: str
) -> list[str]:
    """The section of a score, whose rows have the names of `metrics`; nothing where it has none."""
    if not metrics:
        return []
    scores, beside = findings.scores, _beside(findings.scores, BESIDE)

    def cell(key: str, sign: str = "") -> str:
        if key not in scores:  # pixels have no words
            return "-"
        value, low, high = (100 * scores[f"{key}{end}"] for end in ("", "_low", "_high"))
        return f"{value:{sign}.1f} [{low:.1f}, {high:.1f}]"

    rows = []
    for name, metric in metrics.items():
        key = f"{score}/{name}"
        spread = f" ± {100 * scores[f'spread/{key}']:.1f}" if f"spread/{key}" in scores else ""
        rows.append(
            [
                name,
                metric,
                cell(key) + spread,
                *(cell(f"{other}/{key}") for other in beside),
                f"{100 * scores[chance[name]]:.1f}",
                *(cell(f"gain_over_{other}/{key}", "+") for other in beside),
            ]
        )
    head = ["task", "metric", "trained", *beside.values(), "chance", *(f"over {name}" for name in beside.values())]
    about += " Test scores in %, with 95 % bootstrap intervals over the test examples"
    about += ", ± the deviation over draws." if any(f"spread/{score}/{name}" in scores for name in metrics) else "."
    chosen = {name: findings.chosen[f"{score}/{name}"] for name in metrics if f"{score}/{name}" in findings.chosen}
    settings = [f"* {name}: chosen was {setting}" for name, setting in chosen.items()]
    return ["", f"## {score}", "", about, "", *_table(head, rows), *([""] if settings else []), *settings]


def _classes(scores: Results, score: str, names: Sequence[str]) -> list[str]:
    """The IoU of each class, of each segmentation."""
    lines = []
    for name in names:
        beside = _beside(scores, BESIDE)
        start = f"{score}/{name}/"
        classes = [key.removeprefix(start) for key in scores if key.startswith(start)]
        prefixes = ("", *(f"{x}/" for x in beside))
        rows = [[label, *(f"{100 * scores[f'{x}{start}{label}']:.1f}" for x in prefixes)] for label in classes]
        if rows:
            lines += ["", f"IoU of each class, {name}:", "", *_table(["class", "trained", *beside.values()], rows)]
    return lines


def _ranks(scores: Results) -> list[str]:
    columns = {"": "trained"} | {
        f"{k}/": v for k, v in _beside(scores, {"context": "context encoder"} | BESIDE).items()
    }
    rows = [[title, *(f"{scores[f'{prefix}rank/{name}']:.3g}" for prefix in columns)] for name, title in RANKS.items()]
    about = (
        "Of the test features: how many directions they use, and how far images differ. Patches are those of some "
        "images, without the mean at their position; LiDAR counts the directions that tell an image from others "
        "better than from its own crops. RankMe and LiDAR are at most the number of images or channels: compare them "
        "where both are alike."
    )
    return ["", "## rank", "", about, "", *_table(["measure", *columns.values()], rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in (head, *rows)]
    padded.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(row)} |" for row in padded]
