"""Pictures of an evaluation: label maps beside the truth, nearest neighbours, confusions, learning-rate curves."""

from collections.abc import Sequence
import io
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
import numpy as np

from tc_jepa.data.sources import Captioned
from tc_jepa.data.transforms import resize, resize_and_centre_crop, resize_mask
from tc_jepa.evaluation.results import CONFUSION, file_name, LABEL_MAPS, NEIGHBOURS, SWEEP
from tc_jepa.evaluation.task import Confusion, Findings, LabelMaps
from tc_jepa.evaluation.tasks.segmentation import IGNORED
from tc_jepa.report import pictures
from tc_jepa.report.charts import line_chart
from tc_jepa.storage.files import replace_bytes

SIDE, MAP_HEIGHT = 128, 192  # pixels of a neighbour, and of a label map
NAMED_CLASSES = 40  # of a confusion matrix; with more classes it has no names
NO_LABEL = (255, 255, 255)


def draw(findings: Findings, train: Captioned, test: Captioned, output: Path) -> list[Path]:
    """Writes the pictures of what was found into the existing folder `output`; returns their paths.

    Their names are those of results.files_beside.
    """
    files: dict[str, bytes] = {}
    for name, maps in findings.label_maps.items():
        files[file_name(LABEL_MAPS, name)] = pictures.png(label_maps(maps, test))
    if findings.neighbours is not None:
        files[NEIGHBOURS] = pictures.png(neighbours(*findings.neighbours, train, test))
    for task, found in findings.confusions.items():
        files[file_name(CONFUSION, task)] = confusion(found, task)
    for name, sweep in findings.sweeps.items():
        lines: dict[str, tuple[list[float], list[float]]] = {}
        for (setting, rate), score in sorted(sweep.items()):
            x, y = lines.setdefault(setting, ([], []))
            x.append(rate)
            y.append(100 * score)
        title = f"{name}: % on held-out train examples"
        chart = line_chart(title, lines, x_label="learning rate", marks=True, log_x=True)
        files[file_name(SWEEP, name)] = chart.encode()
    for name, content in files.items():
        replace_bytes(output / name, content)
    return [output / name for name in files]


def label_maps(maps: LabelMaps, test: Captioned) -> np.ndarray:
    """Returns a row per image: the image, its true classes, the predicted ones.

    Colours repeat beyond 20 classes; white pixels are ignored by the score.
    """
    rows = []
    for index, predicted, truth in zip(maps.images, maps.predicted, maps.truth):
        shape = MAP_HEIGHT, round(MAP_HEIGHT * truth.shape[1] / truth.shape[0])
        labels = [coloured(resize_mask(found, shape), len(maps.classes)) for found in (truth, predicted)]
        rows.append(pictures.side_by_side([resize(test[int(index)].image, shape), *labels]))
    width = max(row.shape[1] for row in rows)
    blank = {"mode": "constant", "constant_values": 255}
    return pictures.stacked([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), **blank) for row in rows])


def coloured(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns classes, uint8 [H, W], as colours, uint8 [H, W, 3]."""
    name, count = ("tab10", 10) if classes <= 10 else ("tab20", 20)
    palette = (255 * colormaps[name](np.arange(256) % count)[:, :3]).round().astype(np.uint8)
    palette[IGNORED] = NO_LABEL
    return palette[labels]


def neighbours(shown: Sequence[int], nearest: np.ndarray, train: Captioned, test: Captioned) -> np.ndarray:
    """Returns a row per test image: itself, then the train images nearest to it."""
    rows = []
    for index, others in zip(shown, nearest):
        row = [test[int(index)].image, *(train[int(other)].image for other in others)]
        rows.append(pictures.side_by_side([resize_and_centre_crop(image, SIDE) for image in row]))
    return pictures.stacked(rows)


def confusion(found: Confusion, task: str) -> bytes:
    """Returns a PNG: the share of the examples of a true class (row) that the probe assigns to each class (column)."""
    shares = found.counts / np.maximum(found.counts.sum(axis=1, keepdims=True), 1)
    C = len(found.classes)
    side = 3.0 + 0.22 * min(C, NAMED_CLASSES)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    figure.colorbar(axis.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues"), shrink=0.7)
    if C <= NAMED_CLASSES:
        axis.set_xticks(range(C), found.classes, rotation=90, parse_math=False)
        axis.set_yticks(range(C), found.classes, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(f"{task}, {found.probe}", loc="left", parse_math=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
