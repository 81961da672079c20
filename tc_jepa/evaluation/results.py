"""Writes and reads the results of an evaluation: results.json, results.md, and confusions as CSV."""

from collections.abc import Iterable, Mapping, Sequence
import json
from pathlib import Path

import pandas as pd

from tc_jepa.data.sources import LabelSet
from tc_jepa.errors import UserError
from tc_jepa.evaluation import tasks
from tc_jepa.evaluation.task import Findings, Score, Task
from tc_jepa.storage.files import replace_text
from tc_jepa.storage.reading import read_object

RESULTS, REPORT = "results.json", "results.md"
# Files beside them: confusions as tables, and the pictures of report.evaluated.
TABLE, CONFUSION, LABEL_MAPS, SWEEP = "confusion_{}.csv", "confusion_{}.png", "segmentation_{}.png", "sweep_{}.svg"
NEIGHBOURS = "neighbours.png"
METRICS = {"single": "accuracy", "multi": "mAP"}
BASELINES = {"init": "initialisation", "pixels": "pixels (16x16)"}  # key prefix -> its name in the table
COMPARED = "compared"  # prefix of the encoder of --compare
BESIDE = BASELINES | {COMPARED: "compared"}
ASIDE = (*(f"{name}/" for name in BESIDE), "gain_over_")  # of keys that are not the evaluated encoder's own scores
Results = Mapping[str, float]  # flat, as Findings.scores


def write_results(output: Path, findings: Findings, about: Mapping[str, object], report: str) -> None:
    """Writes results.json, results.md and the confusions as CSV into the folder `output`, which is made if missing.

    Each file is replaced atomically, results.json last, so that where it exists the others do too. It lists the CSVs
    and the pictures, which report.evaluated draws next. Earlier results are removed first, with all files that they
    list, so that a kill never leaves files of two evaluations. Files of these same findings stay.
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
        "examples": findings.examples,
        "files": files_beside(findings),
    }
    text = json.dumps(whole, indent=2) + "\n"
    _remove_earlier(output, text)
    for name, found in findings.confusions.items():
        counts = pd.DataFrame(found.counts, found.classes, found.classes)
        csv = counts.to_csv(index_label=f"true class ({found.probe})", lineterminator="\r\n")
        replace_text(output / file_name(TABLE, name), csv)
    replace_text(output / REPORT, report)
    replace_text(output / RESULTS, text)


def _remove_earlier(output: Path, text: str) -> None:
    """Removes the results in `output` with the files that they list, unless they are `text`."""
    path = output / RESULTS
    if not path.is_file() or path.read_bytes() == text.encode():
        return
    try:
        files = read_results(path).get("files")
    except UserError:  # an older version, which lists no files; it is replaced
        return
    names = [REPORT, *files] if isinstance(files, list) else [REPORT]
    for file in output.iterdir():  # a listed name may be a path to somewhere else
        if file.name in names and not file.is_dir():
            file.unlink()
    path.unlink(missing_ok=True)  # last, because it lists the others


def files_beside(findings: Findings) -> list[str]:
    """The names of the files that belong to findings, beside results.json and results.md."""
    by_form = {
        TABLE: findings.confusions,
        CONFUSION: findings.confusions,
        LABEL_MAPS: findings.label_maps,
        SWEEP: findings.sweeps,
    }
    names = [file_name(form, name) for form, found in by_form.items() for name in found]
    return names + [NEIGHBOURS] * (findings.neighbours is not None)


def file_name(form: str, name: str) -> str:
    """The file of a label set or a score: one of the forms above, filled in."""
    return form.format(name.replace("/", "_"))


def read_results(path: Path) -> dict:
    """The content of a results.json, with "about" and "scores". UserError for another file or an older version's."""
    fix = "evaluate again, or move it away"
    found = read_object(path, fix)
    if not {"about", "scores"} <= found.keys():
        raise UserError(f"{path} was written by an earlier version; {fix}")
    scores = found["scores"]
    if (
        not isinstance(found["about"], dict)
        or not isinstance(scores, dict)
        or not all(map(_is_number, scores.values()))
    ):
        raise UserError(f"{path} is damaged: its scores are not numbers by name; {fix}")
    return found


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def render(findings: Findings, label_sets: Mapping[str, LabelSet], header: Mapping[str, object]) -> str:
    """A Markdown report: the header as a list, then the tables of each task, with scores in percent."""
    lines = ["# Evaluation of a frozen encoder", ""]
    lines += [f"* {name}: {value}" for name, value in header.items()]
    for task in tasks.load_all():
        for score in task.scores:
            lines += _scores(findings, score, _rows(findings.scores, score, label_sets))
        lines += _measures(findings.scores, task)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in findings.seconds.items())
    lines += ["", f"Wall time in seconds: {seconds}; {sum(findings.seconds.values()):.1f} in all."]
    return "\n".join(lines) + "\n"


def _rows(scores: Results, score: Score, label_sets: Mapping[str, LabelSet]) -> dict[str, str]:
    """The rows of a score's table, and the metric of each."""
    if not score.metric:
        return {name: METRICS[x.kind] for name, x in label_sets.items() if f"{score.name}/{name}" in scores}
    keys = [key.split("/") for key in own_scores(scores)]  # longer ones are classes that are called such as "tree_low"
    return {key[1]: score.metric for key in keys if len(key) == 2 and key[0] == score.name}


def _beside(scores: Results, prefixes: Mapping[str, str]) -> dict[str, str]:
    return {name: title for name, title in prefixes.items() if any(key.startswith(f"{name}/") for key in scores)}


def _scores(findings: Findings, score: Score, metrics: Mapping[str, str]) -> list[str]:
    """The section of a score, with a row for each of `metrics`; nothing without any."""
    if not metrics:
        return []
    scores, beside = findings.scores, _beside(findings.scores, BESIDE)
    rows, settings, classes = [], [], []
    for name, metric in metrics.items():
        key = f"{score.name}/{name}"
        spread = f" ± {100 * scores[f'spread/{key}']:.1f}" if f"spread/{key}" in scores else ""
        rows.append(
            {"task": name, "metric": metric, "trained": cell(scores, key) + spread}
            | {title: cell(scores, f"{other}/{key}") for other, title in beside.items()}
            | {"chance": f"{100 * chance(scores, key):.1f}"}
            | {f"over {title}": cell(scores, f"gain_over_{other}/{key}", "+") for other, title in beside.items()}
        )
        if key in findings.chosen:
            settings.append(f"* {name}: chosen was {findings.chosen[key]}")
        classes += _classes(scores, key, beside)
    settings += [f"* {line}" for line in findings.examples.get(score.name, ())]
    about = f"{score.about} Test scores in %, with 95 % bootstrap intervals over the test examples"
    about += ", ± the deviation over draws." if any("±" in row["trained"] for row in rows) else "."
    return ["", f"## {score.name}", "", about, "", table(rows), *[""] * bool(settings), *settings, *classes]


def cell(scores: Results, key: str, sign: str = "") -> str:
    """A score in percent with its interval; "-" for one that is not there: pixels have no words."""
    if key not in scores:
        return "-"
    value, low, high = (100 * scores[f"{key}{end}"] for end in ("", "_low", "_high"))
    return f"{value:{sign}.1f} [{low:.1f}, {high:.1f}]"


def _classes(scores: Results, key: str, beside: Mapping[str, str]) -> list[str]:
    """The IoU of each class of a segmentation; nothing for other scores."""
    columns = {"": "trained"} | {f"{name}/": title for name, title in beside.items()}
    classes = [name.removeprefix(f"{key}/") for name in scores if name.startswith(f"{key}/")]
    rows = [
        {"class": label} | {title: f"{100 * scores[f'{prefix}{key}/{label}']:.1f}" for prefix, title in columns.items()}
        for label in classes
    ]
    return ["", f"IoU of each class, {key.partition('/')[2]}:", "", table(rows)] if rows else []


def _measures(scores: Results, task: Task) -> list[str]:
    """The section of a task's measures, with a column for each encoder."""
    names = [name for name in task.measures if f"{task.name}/{name}" in scores]
    columns = {"": "trained"} | {
        f"{k}/": v for k, v in _beside(scores, {"context": "context encoder"} | BESIDE).items()
    }
    rows = [
        {"measure": task.measures[name]}
        | {title: f"{scores[f'{prefix}{task.name}/{name}']:.3g}" for prefix, title in columns.items()}
        for name in names
    ]
    return ["", f"## {task.name}", "", task.about_measures, "", table(rows)] if rows else []


def family(name: str) -> Score | None:
    """The family of a score such as "knn/shape"; None for other numbers, which need not be in 0-1."""
    families = (score for task in tasks.load_all() for score in task.scores)
    return next((score for score in families if score.name == name.partition("/")[0]), None)


def own_scores(names: Iterable[str]) -> list[str]:
    """The scores of the evaluated encoder that have an interval, such as "knn/shape", in their order."""
    return [name.removesuffix("_low") for name in names if name.endswith("_low") and not name.startswith(ASIDE)]


def chance(scores: Results, name: str) -> float | None:
    """The chance level of a score, as a fraction; None where the evaluation gives none."""
    return scores.get(f"chance/{name}", scores.get(f"chance/{name.partition('/')[2]}"))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A GitHub Markdown table of texts, from one mapping of column titles to cells for each row."""
    return pd.DataFrame(rows).to_markdown(index=False, tablefmt="github", disable_numparse=True)
