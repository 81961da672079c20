"""What a measurement returns, how it is timed, printed and compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import json
import os
from pathlib import Path
import platform
import statistics
import time
from typing import Any, NamedTuple

import jax

from tc_jepa.errors import UserError
from tc_jepa.storage.files import replace_text


class Figure(NamedTuple):
    """A measured number; `low` and `high` are the quartiles of its repeats, None for a number without repeats."""

    value: float
    unit: str
    low: float | None = None
    high: float | None = None


Figures = dict[str, Figure]  # by name, such as "step/seconds"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured. Each measurement uses those that apply to it.

    `repeats` of each timing; `images`, `captions` and `examples` are how many a timing reads. `texts` are numbers of
    captions and `conditioners` values of model.conditioner for the price of text. `rate` is the images/s of a step for
    which cores are counted; 0: none.
    """

    repeats: int = 5
    images: int = 256
    captions: int = 1024
    examples: int = 4000
    classes: int = 100
    epochs: int = 20
    texts: tuple[int, ...] = ()
    conditioners: tuple[str, ...] = ()
    rate: float = 0.0


def of_repeats(values: Sequence[float], unit: str) -> Figure:
    """The median of repeats, with their quartiles."""
    if len(values) == 1:
        return Figure(values[0], unit, values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Figure(middle, unit, low, high)


def per_second(seconds: Figure, count: int, unit: str) -> Figure:
    """The rate at which `count` things were done in so many seconds."""
    return Figure(count / seconds.value, unit, count / seconds.high, count / seconds.low)


def in_turn(
    measured: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Figure]:
    """Returns the seconds of each call, by its name. All are called in turn; a first turn, to warm up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for turn in range(repeats + 1):
        for name, call in measured.items():
            start = clock()
            call()
            if turn:
                seconds[name].append(clock() - start)
    return {name: of_repeats(values, "s") for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Returns what figures depend on besides the code, as JSON."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def lines(figures: Figures) -> Iterator[str]:
    """The figures as text, one a line."""
    width = max(map(len, figures), default=0)
    for name, (value, unit, low, high) in figures.items():
        spread = "" if low is None else f"  ({short(low)} to {short(high)})"
        yield f"{name:{width}}  {short(value)} {unit}{spread}"


def write(path: Path, what: str, config: Mapping[str, Any], figures: Figures) -> None:
    """Writes figures as JSON, with the name of the measurement, the keys of the configuration, and the machine."""
    result = {
        "what": what,
        "machine": machine(),
        "config": dict(config),
        "figures": {name: figure._asdict() for name, figure in figures.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(result, indent=2) + "\n")


def read(path: Path) -> dict[str, Any]:
    """Returns what `write` wrote, with its figures as Figures. UserError for any other file."""
    try:
        result = json.loads(path.read_text())
        figures = {name: Figure(**figure) for name, figure in result["figures"].items()}
        return {"what": result["what"], "machine": result["machine"], "config": result["config"], "figures": figures}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"--compare={path} is not a file of figures ({error!r}); give one that --output wrote", about="compare"
        ) from error


def compared(figures: Figures, other: Mapping[str, Any]) -> Iterator[str]:
    """What differs in the machine, then the figures that both have: here, there, and the ratio here / there.

    `other` is what `read` returns. A ratio is marked with * where the quartiles of the two do not overlap.
    """
    for name, value in machine().items():
        if (there := other["machine"].get(name)) != value:
            yield f"{name}: here {value}, there {there}"
    shared = [name for name in figures if name in other["figures"]]
    width = max(map(len, shared), default=0)
    for name in shared:
        here, there = figures[name], other["figures"][name]
        ratio = f"{here.value / there.value:.3f}{_apart(here, there)}" if there.value else "-"
        yield f"{name:{width}}  {short(here.value)} {here.unit}, there {short(there.value)}: {ratio}"


def _apart(one: Figure, other: Figure) -> str:
    if one.low is None or other.low is None:
        return ""
    return " *" if one.low > other.high or other.low > one.high else ""


def short(value: float) -> str:
    """Four digits, without an exponent for the usual sizes."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
