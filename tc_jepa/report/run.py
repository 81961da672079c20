"""What the report reads of a workdir."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tc_jepa.errors import UserError
from tc_jepa.evaluation.results import read_results
from tc_jepa.methods.reporting import Diagnostics, Rows
from tc_jepa.monitoring.progress import METRICS_FILE, read_metrics


class Run(NamedTuple):
    """A run by what it logged, what its method offers to the report, and its scores if it was evaluated."""

    name: str
    rows: Rows
    diagnostics: Diagnostics
    scores: Mapping[str, float] | None = None
    scores_step: int | None = None  # of the checkpoint that was evaluated
    scores_data: str = ""  # that it was evaluated on


def read_run(workdir: Path, diagnostics: Diagnostics) -> Run:
    """Returns the metrics of a run, and the results in eval/STEP of the last step that was evaluated.

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
        return Run(str(workdir), rows, diagnostics)
    found = read_results(evaluated[step])
    return Run(str(workdir), rows, diagnostics, found["scores"], step, found["about"]["data"])
