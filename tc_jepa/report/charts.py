"""Line charts as SVG that can be put inline into HTML and scales with it."""

from collections.abc import Mapping, Sequence
import io
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure  # not pyplot, which may need a display
from matplotlib.ticker import LogFormatter

COLOURS = ("#1f6feb", "#d1495b", "#2a9d8f", "#8d5fd3", "#e09f3e", "#5c677d", "#0b7285", "#a61e4d")
STYLES = ("-", "--", ":", "-.")
# Text stays text, in the page's own font: files are small and text can be searched. Names are paths as the user wrote
# them: a dollar sign starts no formula.
SETTINGS = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "text.parse_math": False}
SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")

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
    """Returns an <svg> element with named lines, the same text for the same lines.

    `levels` are named horizontal lines, such as a threshold. Lines without points are left out; a chart without lines
    is "".
    """
    drawn = {name: line for name, line in lines.items() if len(line[0])}
    if not drawn:
        return ""
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": title}):  # ids differ between the charts of a page
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.subplots()
        for number, (name, (x, y)) in enumerate(drawn.items()):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
            axes.plot(x, y, style, color=colour, label=name, linewidth=1.5, marker="o" if marks else None, markersize=3)
        for name, level in (levels or {}).items():
            axes.axhline(level, color="#888888", linewidth=1, linestyle=(0, (4, 3)), label=name)
        for logarithmic, set_scale, axis in ((log_x, axes.set_xscale, axes.xaxis), (log, axes.set_yscale, axes.yaxis)):
            if logarithmic:
                set_scale("log")
                # Numbers such as 1e-03: the default ones are formulas, which SETTINGS turns off.
                axis.set_major_formatter(LogFormatter())
                axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(drawn) + len(levels or {}) > 1:
            axes.legend(fontsize=7, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue())


def _inline(svg: str) -> str:
    """The <svg> element alone, with the proportions of its viewBox and without a size of its own."""
    root = ElementTree.fromstring(svg)
    del root.attrib["width"], root.attrib["height"]
    root.set("role", "img")
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    return ElementTree.tostring(root, encoding="unicode")
