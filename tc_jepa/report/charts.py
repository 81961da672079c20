"""Line charts as SVG text that stands in a page by itself and scales with it."""

from collections.abc import Mapping, Sequence
import io

import matplotlib
from matplotlib.figure import Figure  # not pyplot, which may want a display
from matplotlib.ticker import LogFormatter

COLOURS = ("#1f6feb", "#d1495b", "#2a9d8f", "#8d5fd3", "#e09f3e", "#5c677d", "#0b7285", "#a61e4d")
STYLES = ("-", "--", ":", "-.")
# Text stays text, in the page's own font: small files, and it can be read out and searched.
# A name is a path as the user wrote it: dollars in it are no formula.
SETTINGS = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "text.parse_math": False}

Line = tuple[Sequence[float], Sequence[float]]  # x and y


def line_chart(
    title: str,
    lines: Mapping[str, Line],
    *,
    log: bool = False,
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
    x_label: str = "step",
    marks: bool = False,
) -> str:
    """An <svg> of named lines; `levels` are named horizontal ones, such as a threshold. Lines without points are left
    out, and a chart without lines is an empty text."""
    drawn = {name: line for name, line in lines.items() if len(line[0])}
    if not drawn:
        return ""
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": title}):  # ids differ between charts, not between times
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axis = figure.subplots()
        for number, (name, (x, y)) in enumerate(drawn.items()):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
            axis.plot(x, y, style, color=colour, label=name, linewidth=1.5, marker="o" if marks else None, markersize=3)
        for name, level in (levels or {}).items():
            axis.axhline(level, color="#888888", linewidth=1, linestyle=(0, (4, 3)), label=name)
        if log_x:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(LogFormatter())
            axis.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
        if log:
            axis.set_yscale("log")
            # The usual formatter writes formulas, which are off here; this one writes 1e-03.
            axis.yaxis.set_major_formatter(LogFormatter())
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel(x_label)
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        if len(drawn) + len(levels or {}) > 1:
            axis.legend(fontsize=7, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    head, _, rest = svg.partition(">")
    # The viewBox alone gives the shape; the page gives the width.
    kept = [part for part in head.split(" ") if not part.startswith(("width=", "height="))]
    return f'{" ".join(kept)} role="img">{rest}'
