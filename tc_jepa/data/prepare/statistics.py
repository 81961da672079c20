"""Counts of what was prepared: a line of text, histograms, captions.json and a plot (the paper's Fig. 7)."""

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

from tc_jepa.data.captions.candidates import Candidates
from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.sources import SPLITS

JSON_FILE, PLOT_FILE = "captions.json", "captions.png"
ROWS, BAR = 16, 50  # of a histogram in the terminal: rows at most, characters of the longest bar

Counts = collections.Counter


@dataclasses.dataclass
class Summary:
    """Counts over images. The counts of shards can be added, and stored as JSON."""

    images: Counts[str] = dataclasses.field(default_factory=Counts)  # by split
    captions: Counts[int] = dataclasses.field(default_factory=Counts)  # images by their number of candidates
    words: Counts[int] | None = None  # candidates by their tokens, end of sentence included; None: no vocabulary
    longest: int | None = None  # S, if known: candidates with more tokens are cut when they are read
    blank: int = 0
    duplicates: int = 0
    skipped: int = 0  # images left out

    def add(self, other: "Summary") -> None:
        """Adds the counts of `other`. Either both count words or neither."""
        self.images.update(other.images)
        self.captions.update(other.captions)
        if self.words is not None:
            self.words.update(other.words)
        self.blank += other.blank
        self.duplicates += other.duplicates
        self.skipped += other.skipped

    def count(self, split: str, candidates: Candidates, tokenizer: CaptionTokenizer | None) -> None:
        """Counts one image, and with `tokenizer` the words of its candidates."""
        self.images[split] += 1
        self.captions[len(candidates.texts)] += 1
        if tokenizer is not None:
            self.words.update(tokenizer.lengths(candidates.texts))
        self.blank += candidates.blank
        self.duplicates += candidates.duplicates

    @property
    def cut(self) -> int | None:
        """Candidates with more than S tokens; None if words are not counted."""
        counted = self.words is not None and self.longest is not None
        return sum(self.words[length] for length in self.words if length > self.longest) if counted else None

    def __str__(self) -> str:
        images = ", ".join(f"{self.images[split]} {split}" for split in SPLITS if self.images[split])
        captions = f"min {min(self.captions)}, mean {_mean(self.captions):.2f}, max {max(self.captions)}"
        return f"images: {images}; captions per image: {captions}; skipped: {self.skipped}"

    def as_json(self) -> dict[str, Any]:
        return {
            name: {str(key): value[key] for key in sorted(value)} if isinstance(value, Counts) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Summary":
        counted = {
            name: fields[name] and {int(key): n for key, n in fields[name].items()} for name in ("captions", "words")
        }
        counts = {name: None if found is None else Counts(found) for name, found in counted.items()}
        return cls(**fields | {"images": Counts(fields["images"])} | counts)


def text(summary: Summary) -> str:
    """Both histograms for a terminal, and what was left out; one line if no image has captions."""
    if not any(summary.captions):
        return "no image has captions"
    parts = [_bars("candidates per image", "images", summary.captions)]
    if summary.words is None:
        parts.append("words per candidate: not counted without a vocabulary; give --vocabulary")
    elif summary.words:
        parts.append(_bars("words per candidate, end of sentence included", "candidates", summary.words))
        if summary.cut is not None:
            share = summary.cut / summary.words.total()
            parts.append(f"longer than {summary.longest} words, cut when read: {summary.cut} ({share:.1%})")
    parts.append(f"left out: {summary.duplicates} duplicates, {summary.blank} blank")
    return "\n".join(parts)


def write(summary: Summary, folder: Path) -> None:
    """Writes captions.json, and captions.png if any image has captions."""
    values = summary.as_json()
    report = {
        "images": {split: summary.images[split] for split in SPLITS if summary.images[split]},
        "images_by_candidates": values["captions"],
        "candidates_by_words": values["words"],
        "words": summary.longest,
        "longer_than_words": summary.cut,
    } | {name: values[name] for name in ("blank", "duplicates", "skipped")}
    (folder / JSON_FILE).write_text(json.dumps(report, indent=1) + "\n")
    if any(summary.captions):
        _plot(summary, folder / PLOT_FILE)


def _mean(counts: Counts[int]) -> float:
    return sum(value * count for value, count in counts.items()) / counts.total()


def _bars(title: str, unit: str, counts: Counts[int]) -> str:
    low, high = min(counts), max(counts)
    width = (high - low) // ROWS + 1
    bins = [range(start, start + width) for start in range(low, high + 1, width)]
    heights = {f"{b[0]}-{b[-1]}" if width > 1 else str(b[0]): sum(counts[value] for value in b) for b in bins}
    lines = [f"{title} ({counts.total()} {unit}, mean {_mean(counts):.2f})"]
    for name, height in heights.items():
        bar = "#" * -(-height * BAR // max(heights.values()))
        lines.append(f"  {name:>{max(map(len, heights))}} | {bar}{' ' * bool(bar)}{height}")
    return "\n".join(lines)


def _plot(summary: Summary, path: Path) -> None:
    from matplotlib.figure import Figure  # not pyplot, which may need a display

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _histogram(left, summary.captions, "candidates", "images")
    if summary.words:
        _histogram(right, summary.words, "words, end of sentence included", "candidates")
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "words not counted: no vocabulary", ha="center", va="center")
    if summary.words and summary.longest is not None:
        right.axvline(summary.longest + 0.5, color="black", linestyle="--", linewidth=1)
        right.set_title(f"{summary.cut / summary.words.total():.1%} longer than {summary.longest}", fontsize=10)
    figure.savefig(path, dpi=120)


def _histogram(axes, counts: Counts[int], of: str, unit: str) -> None:
    values = sorted(counts)
    axes.bar(values, [counts[value] for value in values], width=0.9)
    axes.axvline(_mean(counts), color="tab:orange", label=f"mean {_mean(counts):.2f}")
    axes.set_xlabel(of)
    axes.set_ylabel(unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
