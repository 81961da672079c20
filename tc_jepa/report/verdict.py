"""Answers and warnings of a report: did the run learn, what its method asks besides, and every number that looks wrong.

All of it from what a run logged: the rows of its metrics.jsonl and, if it was evaluated, its scores.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from pathlib import Path
from typing import NamedTuple

from tc_jepa.errors import UserError
from tc_jepa.evaluation.results import family, read_results
from tc_jepa.methods.reporting import Answer, Diagnostic, Diagnostics, features_section, held_out, Rows
from tc_jepa.monitoring.alarms import Alarms, describe
from tc_jepa.storage.checkpoint import saved_steps
from tc_jepa.storage.metrics_file import METRICS_FILE, read_metrics

LEARNED = "Did this run learn?"


class Run(NamedTuple):
    """A run by what it logged, what its method offers to the report, and its scores if it was evaluated."""

    name: str
    rows: Rows
    diagnostics: Diagnostics
    scores: Mapping[str, float] | None = None
    scores_step: int | None = None  # of the checkpoint that was evaluated
    scores_data: str = ""  # that it was evaluated on
    saved: Sequence[int] = ()  # steps of its checkpoints


def read_run(workdir: Path, diagnostics: Diagnostics) -> Run:
    """Returns the metrics of a run, its checkpoints, and the results in eval/STEP of the last step that was evaluated.

    UserError for a workdir without metrics, and for damaged ones.
    """
    path = workdir / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{workdir} holds no {METRICS_FILE}; give the --workdir of a training run")
    rows = read_metrics(path)
    if not rows:
        raise UserError(f"{path} is empty: the run has logged nothing yet")
    evaluated = {int(p.parent.name): p for p in workdir.glob("eval/*/results.json") if p.parent.name.isdigit()}
    step = max(evaluated, default=None)
    if step is None:
        return Run(str(workdir), rows, diagnostics, saved=saved_steps(workdir))
    found = read_results(evaluated[step])
    data = found["about"].get("data")
    if not isinstance(data, str):
        raise UserError(f"{evaluated[step]} is damaged: it does not name its data; evaluate again")
    return Run(str(workdir), rows, diagnostics, found["scores"], step, data, saved_steps(workdir))


class Verdict(NamedTuple):
    """`answers` by question, the first of which is LEARNED. `warnings` are sentences."""

    answers: dict[str, Answer]
    warnings: list[str]


def judge(run: Run) -> Verdict:
    """Returns the verdict on a run, which has logged at least one row."""
    looks = held_out(run.rows)
    answers = {LEARNED: _learned(run.scores)} | {one.text: one.answer(looks) for one in run.diagnostics.questions}
    warnings = _warnings(looks, run.diagnostics)
    said = " ".join(warnings)
    falls = [fall for fall in Alarms(run.rows).falls if fall.number.name not in said]
    warnings += [describe(fall, run.saved, run.diagnostics.against_collapse) for fall in falls]
    warnings += [text for check in run.diagnostics.checks if (text := check(run.rows)) is not None]
    scored, last = run.scores_step, max(row["step"] for row in run.rows)
    if scored is not None and scored < last:
        warnings.append(f"The scores are from step {scored}, but the run is at step {last}: evaluate it again.")
    return Verdict(answers, warnings)


def since(looks: Rows, key: str, bad: Callable[[float], bool]) -> int | None:
    """Returns the first step from which a number was bad at every evaluation to the last; None if the last is not bad.

    Step 0, before training, is left out.
    """
    first = None
    for look in looks:
        if key in look and look["step"] > 0:
            first = (look["step"] if first is None else first) if bad(look[key]) else None
    return first


def initial(rows: Rows, key: str) -> float | None:
    """Returns a number before training, if it was logged."""
    return next((row[key] for row in rows if row["step"] == 0 and key in row), None)


def _learned(scores: Mapping[str, float] | None) -> Answer:
    if scores is None:
        return Answer("Unknown: this run has not been evaluated.")
    prefix = "gain_over_init/"
    names = [key.removeprefix(prefix) for key in scores if key.startswith(prefix) and f"{key}_low" in scores]
    names = [name for name in names if (scored := family(name)) and scored.headline]
    if not names:
        fix = "evaluate it with baselines, and with tasks that need labels or masks"
        return Answer(f"Unknown: no score of this run has a baseline; {fix}.")
    better = [name for name in names if scores[f"{prefix}{name}_low"] > 0]
    worse = [name for name in names if scores[f"{prefix}{name}_high"] < 0]
    tally = f"{len(better)} of {len(names)} scores are better than those of the encoder before training"
    below = f", {len(worse)} worse" if worse else ""
    if not better:
        return Answer(f"No: {tally}, beyond the 95 % intervals{below}.", good=False)
    best = max(better, key=lambda name: scores[f"{prefix}{name}"])
    most = f"most: {best}, {100 * scores[f'{prefix}{best}']:+.1f} points"
    good = True if len(better) > len(worse) else None
    return Answer(f"{'Yes' if good else 'In part'}: {tally}, beyond the 95 % intervals{below} ({most}).", good)


def _warnings(looks: Rows, diagnostics: Diagnostics) -> list[str]:
    found = []
    if not any(look["step"] > 0 for look in looks):
        found.append("The run has not been evaluated on held-out images since it began, so little can be said of it.")
    for key in looks[-1] if looks else ():
        # A number that is not finite is beyond no threshold and would pass every check that follows.
        step = since(looks, key, lambda value: not math.isfinite(value))
        if step is not None:
            found.append(f"{key} has not been finite since step {step}.")
    for section in (*diagnostics.sections, features_section(diagnostics.against_collapse)):
        for one in section.diagnostics:
            found += [text for key in one.keys(looks[-1:]) if (text := _warning(one, key, looks)) is not None]
    return found


def _warning(diagnostic: Diagnostic, key: str, looks: Rows) -> str | None:
    first = initial(looks, key)
    limit = diagnostic.limit(first)
    if limit is None:
        return None
    higher = diagnostic.higher_is_better
    step = since(looks, key, lambda value: value < limit if higher else value > limit)
    if step is None:
        return None
    before = f"; before training it was {first:.3g}" if diagnostic.relative else ""
    value = f"{key} is {looks[-1][key]:.3g}, {'below' if higher else 'above'} {limit:.3g}{before}"
    return " ".join(part for part in (f"{diagnostic.warning} since step {step} ({value}).", diagnostic.advice) if part)
