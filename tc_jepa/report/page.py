"""The report as one HTML page that loads nothing: styles, charts and pictures are in it, and there is no script."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

import numpy as np

from tc_jepa.evaluation.results import BASELINES, BESIDE, PROBED
from tc_jepa.report.charts import line_chart
from tc_jepa.report.looks import Input, WordLook
from tc_jepa.report.pictures import data_uri
from tc_jepa.report.verdict import NO_EFFECT, Rows, Verdict


class Run(NamedTuple):
    """What is told of a run: its name, the lines of its metrics.jsonl, and its scores if it was evaluated."""

    name: str
    rows: Rows
    scores: Mapping[str, float] | None
    scores_step: int | None = None  # of the checkpoint that was evaluated
    scores_data: str = ""  # what it was evaluated on


class Pictures(NamedTuple):
    """What only a checkpoint can show. `no_words` says why there are no maps of words, where there are none."""

    step: int
    inputs: Sequence[Input]
    spectra: Mapping[str, np.ndarray]
    pca: Sequence[Sequence[np.ndarray]]
    words: Sequence[WordLook]
    no_words: str


EVALUATED = "eval/"  # of keys in metrics.jsonl: scores of train.eval_tasks

TEMPLATE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --tint: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1rem; color: var(--ink); background: #fff;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: .2rem 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, figcaption, li { max-width: 46rem; }
.about, figcaption { color: var(--soft); font-size: .88rem; margin: .2rem 0; }
.answers { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); }
.answer { border: 1px solid var(--line); border-left: 6px solid #8c959f; border-radius: 6px; padding: .7rem .9rem; }
.answer.yes { border-left-color: #2a9d8f; } .answer.no { border-left-color: #d1495b; }
.answer b { display: block; font-size: .88rem; color: var(--soft); }
.warnings { background: #fff8e6; border: 1px solid #e0b84c; border-radius: 6px; padding: .6rem .9rem; margin: 1rem 0; }
.warnings ul { margin: 0; padding-left: 1.1rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.grid.broad { grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.grid svg { width: 100%; height: auto; display: block; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
.row { display: grid; gap: 4px; grid-auto-flow: column; grid-auto-columns: 1fr; }
.row span { font-size: .75rem; color: var(--soft); line-height: 1.2; }
ul.captions { margin: .3rem 0 0; padding-left: 1.1rem; font-size: .88rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
pre, code { font-size: .82rem; background: var(--tint); } pre { padding: .7rem; overflow-x: auto; border-radius: 6px; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def render(
    main: Run,
    others: Sequence[Run],
    verdict: Verdict,
    pictures: Pictures | None,
    *,
    about: str,
    settings: Mapping[str, object],
    commands: Sequence[str],
) -> str:
    """The whole page. `about` is a line on what was trained; `settings` the flat configuration; `commands` reproduce.

    `others` are compared in charts and scores; pictures are the main run's. Every text is escaped.
    """
    runs = [main, *others]
    parts = [
        _answers(verdict, about),
        _training(runs),
        _words(runs),
        _collapse(runs, pictures),
        _on_the_way(main),
        _regularisers(main),
        _pictures(pictures),
        _scores(runs),
        _settings(settings),
        _section("How to reproduce", "", f"<pre>{escape(chr(10).join(commands))}</pre>"),
    ]
    return TEMPLATE.substitute(title=escape(f"Report: {main.name}"), body="\n".join(part for part in parts if part))


def _section(title: str, about: str, content: str) -> str:
    note = f'<p class="about">{escape(about)}</p>' if about else ""
    return f"<section><h2>{escape(title)}</h2>{note}{content}</section>"


def _answers(verdict: Verdict, about: str) -> str:
    boxes = []
    for question, answer in (("Did this run learn?", verdict.learned), ("From the words?", verdict.words)):
        tone = {"Yes": "yes", "No:": "no"}.get(answer[:3], "")
        boxes.append(f'<div class="answer {tone}"><b>{escape(question)}</b>{escape(answer)}</div>')
    warnings = "".join(f"<li>{escape(text)}</li>" for text in verdict.warnings)
    block = f'<div class="warnings"><b>Look at this</b><ul>{warnings}</ul></div>' if warnings else ""
    fine = "" if warnings else '<p class="about">No number that is watched looks wrong.</p>'
    return f'<p class="about">{escape(about)}</p><div class="answers">{"".join(boxes)}</div>{block}{fine}'


def _lines(runs: Sequence[Run], keys: Mapping[str, str]) -> dict[str, tuple[list, list]]:
    """Lines over steps for metrics.jsonl's `keys` (key -> label), of every run; a single run needs no name."""
    lines = {}
    for run in runs:
        for key, label in keys.items():
            points = [(row["step"], row[key]) for row in run.rows if key in row]
            name = label if len(runs) == 1 else f"{label} ({run.name})" if len(keys) > 1 else run.name
            lines[name] = ([x for x, _ in points], [y for _, y in points])
    return lines


def _charts(*charts: str) -> str:
    return f'<div class="grid">{"".join(f"<figure>{chart}</figure>" for chart in charts if chart)}</div>'


def _training(runs: Sequence[Run]) -> str:
    about = (
        "A JEPA's loss judges nothing by itself: it falls as features collapse and may rise as they improve. "
        "Sparsity and consistency are shown before their weights."
    )
    terms = {f"loss/{name}": name for name in ("sparsity", "consistency")}
    charts = (
        line_chart("Training loss, total", _lines(runs, {"loss": "loss"})),
        line_chart("Prediction loss, training", _lines(runs, {"loss/prediction": "prediction"})),
        line_chart("Regularisers, unweighted", _lines(runs, terms)),
        line_chart("Gradient norm", _lines(runs, {"gradient_norm": "gradient norm"}), log=True),
        line_chart("Learning rate", _lines(runs, {"learning_rate": "learning rate"})),
        line_chart("Weight decay", _lines(runs, {"weight_decay": "weight decay"})),
        line_chart("Momentum of the target", _lines(runs, {"momentum": "momentum"})),
        line_chart("Images a second", _lines(runs, {"images_per_second": "images a second"})),
    )
    return _section("Loss and schedules", about, _charts(*charts))


def _words(runs: Sequence[Run]) -> str:
    about = (
        "Held-out images with their own captions, with each other's, and with none. If a model reads, its loss is "
        "lowest with the true ones; worth is by how much the others raise it."
    )
    losses = {
        "heldout/prediction": "true",
        "heldout/prediction_shuffled": "shuffled",
        "heldout/prediction_absent": "absent",
    }
    worths = {"text_worth/shuffled": "shuffled", "text_worth/absent": "absent"}
    levels = {"no effect below": NO_EFFECT}
    charts = (
        line_chart("Held-out prediction loss", _lines(runs, losses), marks=True),
        line_chart("Worth of the words (rise of the loss)", _lines(runs, worths), levels=levels, marks=True),
    )
    return _section("Are the words read?", about, _charts(*charts))


def _collapse(runs: Sequence[Run], pictures: Pictures | None) -> str:
    about = (
        "Pooled features of held-out images by the judged encoder: how many directions they use (RankMe) and how far "
        "they spread. An early dip is usual; near 1 and 0 is collapse. A spectrum that falls off a cliff is, too."
    )
    spectra = {name: (range(1, 1 + len(x)), x) for name, x in pictures.spectra.items()} if pictures else {}
    charts = (
        line_chart("RankMe", _lines(runs, {"rank/rankme": "RankMe"}), marks=True),
        line_chart("Deviation of features", _lines(runs, {"rank/feature_std": "deviation"}), marks=True),
        line_chart("Singular values, largest as 1", spectra, log=True, x_label="number"),
    )
    return _section("Is it collapsing?", about, _charts(*charts))


def _on_the_way(main: Run) -> str:
    """Scores of train.eval_tasks, where the run has any: those of an evaluation's tables, and LiDAR."""
    keys = dict.fromkeys(key for row in main.rows for key in row if key.startswith(EVALUATED))
    names = [key.removeprefix(EVALUATED) for key in keys]
    scores = {f"{EVALUATED}{name}": name for name in names if name.partition("/")[0] in PROBED}
    charts = (
        line_chart("Scores, as fractions", _lines([main], scores), marks=True),
        line_chart("LiDAR", _lines([main], {f"{EVALUATED}rank/lidar": "LiDAR"}), marks=True),
    )
    if not any(charts):
        return ""
    about = "The judged encoder frozen at these steps, on train.eval_examples examples to fit on and to test on."
    return _section("Scores on the way", about, _charts(*charts))


def _regularisers(main: Run) -> str:
    layers = sorted({key.partition("/")[0] for row in main.rows for key in row if key.startswith("layer_")})
    if not layers:
        return ""
    about = (
        "By layer of the predictor. The paper's regularisers act on positive cosines only: at a share of 0 they are "
        "dead. Attention entropy is 1 where all words are read alike, and 0 where one is."
    )
    charts = (
        line_chart(title, _lines([main], {f"{layer}/{key}": layer for layer in layers}), log=log, marks=True)
        for title, key, log in (
            ("Share of positive cosines", "positive_cosines", True),
            ("Mean rectified cosine", "rectified_cosine", True),
            ("Attention entropy", "attention_entropy", False),
        )
    )
    return _section("Are the regularisers alive?", about, _charts(*charts))


def _figure(pictures: Sequence[tuple[str, np.ndarray]], caption: str) -> str:
    cells = "".join(
        f'<div><img src="{data_uri(picture)}" alt="{escape(label)}"><span>{escape(label)}</span></div>'
        for label, picture in pictures
    )
    return f'<figure><div class="row">{cells}</div>{caption}</figure>'


def _pictures(pictures: Pictures | None) -> str:
    if pictures is None:
        return _section(
            "Pictures", "There is no checkpoint yet: pictures of masks, features and words come with one.", ""
        )
    at = f"Step {pictures.step}. "
    seen = [_figure([(one.note, one.picture)], _captions(one.captions)) for one in pictures.inputs]
    about = (
        "Images of the first batch, cropped as they were trained on. Bright: what the context encoder sees. "
        "Outlined: the blocks to predict. Below: the captions as the model receives them, read back from their ids."
    )
    parts = [_section("What the model sees", about, f'<div class="grid">{"".join(seen)}</div>')]
    labels = ("image", *pictures.spectra)
    rows = [_figure(list(zip(labels, row)), "") for row in pictures.pca]
    about = at + (
        "Held-out images. Patch features minus their mean over these images; their first three principal directions "
        "are red, green and blue, each from its 2nd to its 98th percentile. Equal colours mean equal features."
    )
    parts.append(_section("Features in colours (PCA)", about, f'<div class="grid broad">{"".join(rows)}</div>'))
    about = at + (
        "Left to right: the image; cosine of each patch with a word, mean over the predictor's layers, from its lowest "
        "(dark) to its highest (yellow); error of predicting a patch when hidden, with and without captions, on one "
        "scale."
    )
    if not pictures.words:
        about = pictures.no_words
    rows = [
        _figure(
            [("image", x.image), (x.word, x.map), ("error with words", x.with_words), ("without", x.without_words)],
            f"<figcaption>{escape(x.caption)}: {escape(x.note)}</figcaption>",
        )
        for x in pictures.words
    ]
    parts.append(_section("Words and patches", about, f'<div class="grid broad">{"".join(rows)}</div>'))
    return "\n".join(parts)


def _captions(captions: Sequence[str] | None) -> str:
    if captions is None:
        return '<p class="about">stored word vectors: no text to show</p>'
    if not captions:
        return '<p class="about">no caption</p>'
    return f'<ul class="captions">{"".join(f"<li>{escape(text)}</li>" for text in captions)}</ul>'


def _scores(runs: Sequence[Run]) -> str:
    about = (
        "Frozen features on test examples, in percent, with 95 % bootstrap intervals over the examples. "
        "Written by launch.evaluate."
    )
    main = runs[0].scores
    if runs[0].scores_step is not None:
        about = f"Step {runs[0].scores_step}, on {runs[0].scores_data}. {about}"
    if main is None:
        return _section("Scores", "Not evaluated yet: python -m launch.evaluate --encoder=WORKDIR", "")
    aside = tuple(f"{name}/" for name in BESIDE) + ("gain_over_",)
    names = [key.removesuffix("_low") for key in main if key.endswith("_low") and not key.startswith(aside)]

    def cell(scores: Mapping[str, float] | None, key: str, sign: str = "") -> str:
        if scores is None or key not in scores:
            return "<td>-</td>"
        value, low, high = (100 * scores[f"{key}{end}"] for end in ("", "_low", "_high"))
        return f"<td>{value:{sign}.1f} [{low:.1f}, {high:.1f}]</td>"

    trained = [runs[0].name, *(run.name for run in runs[1:])] if len(runs) > 1 else ["trained"]
    head = ["score", *trained, *BASELINES.values(), "gain over initialisation"]
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    for name in names:
        cells = [f"<td>{escape(name)}</td>", *(cell(run.scores, name) for run in runs)]
        cells += [cell(main, f"{baseline}/{name}") for baseline in BASELINES]
        lines.append("".join([*cells, cell(main, f"gain_over_init/{name}", "+")]))
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return _section("Scores", about, f'<div class="wide"><table>{rows}</table></div>')


def _settings(settings: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in sorted(settings.items())
    )
    table = f'<div class="wide"><table>{rows}</table></div>'
    return _section("Configuration", "", f"<details><summary>{len(settings)} keys</summary>{table}</details>")
