"""metrics.jsonl, the log of a run: one flat JSON object a line, with a "step" and numbers."""

import itertools
import json
from pathlib import Path

from absl import logging

from tc_jepa.errors import UserError
from tc_jepa.storage.files import replace_bytes

METRICS_FILE = "metrics.jsonl"
DAMAGED_FILE = "metrics.damaged.jsonl"  # beside it: the lines that were set aside


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics.jsonl. A last line without its end, left by a kill, is skipped.

    UserError, with the number of the line, for one that is not a JSON object of numbers with a "step".
    """
    return [row for _, row in _whole_lines(path)]


def logged_rows(workdir: Path, step: int) -> list[dict[str, float]]:
    """Returns the rows of a workdir's metrics.jsonl up to a step; none where there is no such file."""
    path = workdir / METRICS_FILE
    return [row for row in read_metrics(path) if row["step"] <= step] if path.exists() else []


def last_logged_step(workdir: Path) -> int:
    """Returns the largest step in a workdir's metrics.jsonl, -1 without any. Damaged lines are passed over."""
    return max(_logged_steps(workdir), default=-1)


def widest_gap(workdir: Path) -> int:
    """Returns the most steps between two that follow each other in a workdir's metrics.jsonl; 0 without two."""
    steps = sorted(_logged_steps(workdir))
    return max((after - before for before, after in itertools.pairwise(steps)), default=0)


def _logged_steps(workdir: Path) -> set[int]:
    path = workdir / METRICS_FILE
    rows = [_row(line) for line in _lines(path)] if path.exists() else []
    return {row["step"] for row in rows if row is not None}


def cut_back(path: Path, step: int) -> None:
    """Removes the lines after `step`, and a last line without its end. UserError as in read_metrics."""
    if path.exists():
        kept = [line for line, row in _whole_lines(path) if row["step"] <= step]
        replace_bytes(path, b"".join(line + b"\n" for line in kept))


def set_aside_damaged(path: Path) -> None:
    """Moves the damaged lines of a metrics.jsonl to DAMAGED_FILE beside it, and warns of them in one line."""
    if not path.exists():
        return
    lines = _lines(path)
    damaged = [number for number, line in enumerate(lines, start=1) if _row(line) is None]
    if not damaged:
        return
    beside = path.with_name(DAMAGED_FILE)
    before = beside.read_bytes() if beside.exists() else b""
    # The lines are in the other file before they are out of this one.
    replace_bytes(beside, before + b"".join(lines[number - 1] + b"\n" for number in damaged))
    replace_bytes(path, b"".join(line + b"\n" for number, line in enumerate(lines, start=1) if number not in damaged))
    count, numbers = len(damaged), ", ".join(map(str, damaged))
    logging.warning("%s: %d damaged line(s), moved to %s: %s", path, count, DAMAGED_FILE, numbers)


def _lines(path: Path) -> list[bytes]:
    """The lines that end in a newline, without it."""
    return path.read_bytes().split(b"\n")[:-1]


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, float]]]:
    """The lines that end in a newline, without it, each with what it holds."""
    found = [(line, _row(line)) for line in _lines(path)]
    for number, (_, row) in enumerate(found, start=1):
        if row is None:
            raise UserError(f"{path}, line {number} is damaged: not a JSON object of numbers; delete that line")
    return found


def _row(line: bytes) -> dict[str, float] | None:
    """What a line holds; None where it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # bytes that are not UTF-8, too
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row if all(type(value) in (int, float) for value in row.values()) else None
