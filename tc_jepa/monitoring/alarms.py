"""Alarms of a run: signs of collapse that have fallen far below their best so far.

They are a function of the rows of metrics.jsonl alone. So a resumed run knows what was said before, and the report
repeats it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from absl import logging

from tc_jepa.distributed.processes import is_first
from tc_jepa.methods.feature_metrics import CONSTANT_SHARE, PARTICIPATION
from tc_jepa.methods.reporting import ANTI_COLLAPSE, RANKME_CENTRED, Rows

# Shares of the best so far. Below FALLEN there is an alarm; from HEALTHY on, a checkpoint is from before any fall. Runs
# that were healthy in the end have dipped to 0.38 of RankMe without the mean (scenes_spacious.py with model.stem=conv;
# photographs of flickr8k to 0.51, back at 0.9 later), to 0.28 of what is not the constant vector (the photographs), and
# to 0.26 of participation (LeJEPA with batches of 16 scenes); for single lines the last two to 0.20 and 0.23. Of 59
# runs of 100 steps and more on scenes and photographs one had an alarm: TC-JEPA at a learning rate of 0.02 collapsed.
FALLEN = 0.25
HEALTHY = 0.5


class Watched(NamedTuple):
    """A number of metrics.jsonl that is watched; `left` of it is what falls to 0 as features collapse."""

    name: str
    left: Callable[[float], float]
    lines: int  # that must be below in a row: one line of a noisy number is no alarm
    meaning: str  # of a low value, a sentence


FEW = "The features use few directions."
WATCHED = (
    Watched(PARTICIPATION, lambda value: value, 5, FEW),
    Watched(CONSTANT_SHARE, lambda value: 1.0 - value, 5, "The features are nearly one constant vector."),
    Watched(RANKME_CENTRED, lambda value: value, 1, FEW),
)


class Fall(NamedTuple):
    """An alarm: `number` was `best` at `best_step` and `value` at `step`, where the alarm is given.

    `healthy` is the last step before it at which every watched number was near its best; None if there was none.
    """

    number: Watched
    best: float
    best_step: int
    value: float
    step: int
    healthy: int | None


class Alarms:
    """The alarms of a run, row by row. Each watched number gives one alarm in a run at most."""

    def __init__(self, rows: Rows = ()):
        """`rows` of metrics.jsonl are those logged before."""
        self.falls: list[Fall] = []
        self.healthy: int | None = None  # the newest step at which every watched number was near its best
        self._best: dict[str, tuple[float, int]] = {}  # the value, and its step
        self._now: dict[str, float] = {}  # as a share of the best
        self._below: dict[str, int] = {}  # lines in a row
        for row in rows:
            self.observe(row)

    def observe(self, row: Mapping[str, float]) -> list[Fall]:
        """Takes the next row of metrics.jsonl; returns the alarms that it gives."""
        new, seen = [], [number for number in WATCHED if number.name in row]
        for number in seen:
            name, step = number.name, int(row["step"])
            left = number.left(row[name])
            if name not in self._best or left > number.left(self._best[name][0]):
                self._best[name] = row[name], step
            best, best_step = self._best[name]
            self._now[name] = left / number.left(best) if number.left(best) > 0 else 1.0
            self._below[name] = self._below.get(name, 0) + 1 if self._now[name] < FALLEN else 0
            if self._below[name] == number.lines and name not in {fall.number.name for fall in self.falls + new}:
                new.append(Fall(number, best, best_step, row[name], step, self.healthy))
        if seen and all(share >= HEALTHY for share in self._now.values()):
            self.healthy = int(row["step"])
        self.falls += new
        return new

    def kept(self, saved: Iterable[int]) -> set[int]:
        """Returns which of the saved steps must not be deleted: the newest healthy one, and those before each alarm."""
        steps = list(saved)
        wanted = {newest(steps, healthy) for healthy in (self.healthy, *(fall.healthy for fall in self.falls))}
        return {step for step in wanted if step is not None}


def newest(saved: Iterable[int], until: int | None) -> int | None:
    """Returns the newest of the saved steps up to a step; None if there is none."""
    return None if until is None else max((step for step in saved if step <= until), default=None)


def describe(fall: Fall, saved: Iterable[int], advice: str = ANTI_COLLAPSE) -> str:
    """Returns an alarm in words: what fell, what to change, and which of the `saved` steps is from before the fall."""
    number, kept = fall.number, newest(saved, fall.healthy)
    checkpoint = "There is no checkpoint" if kept is None else f"The checkpoint of step {kept} is kept, which is"
    return (
        f"{number.name} went from {fall.best:.3g} at step {fall.best_step} to {fall.value:.3g} at step {fall.step}. "
        f"{number.meaning} {advice} {checkpoint} from before the fall."
    )


def warn(falls: Iterable[Fall], saved: Sequence[int], advice: str) -> None:
    """Logs alarms as in `describe`, in the first process alone."""
    for fall in falls if is_first() else ():
        logging.warning("%s", describe(fall, saved, advice))
