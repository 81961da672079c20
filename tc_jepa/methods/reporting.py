"""Records by which a method describes what it logs: which numbers are shown, what they mean, when they are wrong.

The report and the tables of sweeps know these records only. They are plain data and functions of logged rows: no JAX.
"""

from collections.abc import Callable, Mapping, Sequence
import fnmatch
from typing import NamedTuple

Rows = Sequence[Mapping[str, float]]  # lines of metrics.jsonl in their order, each with "step"

RANKME = "rank/rankme"  # logged at every evaluation on held-out images, whatever the method and the version
RANKME_CENTRED = "rank/rankme_centred"  # in runs of older versions it is missing, and so are the numbers beside it
CONSTANT_SHARE = "rank/constant_share"

ANTI_COLLAPSE = "Lower optimizer.peak_learning_rate, or give a longer optimizer.warmup_steps."


def held_out(rows: Rows) -> Rows:
    """Returns the rows that were logged with an evaluation on held-out images."""
    return [row for row in rows if RANKME in row]


class Diagnostic(NamedTuple):
    """One logged number, or the same number of several layers.

    With a `threshold`, the report warns while the number is on the wrong side of it, from some evaluation on held-out
    images to the last one. The state before training is not judged.
    """

    name: str  # key in metrics.jsonl; "*" stands for the layer's name, as in "layer_*/attention_entropy"
    label: str  # in the legend of a chart and in tables
    chart: str  # title of the chart; diagnostics with the same title are lines of one chart
    meaning: str = ""  # one sentence, shown under the chart
    log_scale: bool = False
    higher_is_better: bool | None = None  # None: neither
    threshold: float | None = None
    relative: bool = False  # the threshold is a fraction of the number before training (step 0)
    warning: str = ""  # what is wrong beyond the threshold, a clause that "since step 100" can follow
    advice: str = ""  # one sentence that explains the warning or says what to do
    compared: bool = False  # whether the tables of sweeps show it
    percent: bool = False  # tables show it times 100

    def keys(self, rows: Rows) -> dict[str, str]:
        """Returns the keys of `rows` that this describes, each with its label: the layer's name for a "*"."""
        if "*" not in self.name:
            return {self.name: self.label} if any(self.name in row for row in rows) else {}
        found = dict.fromkeys(key for row in rows for key in row if fnmatch.fnmatchcase(key, self.name))
        return {key: key.partition("/")[0] for key in found}

    def limit(self, initial: float | None) -> float | None:
        """Returns the value beyond which the report warns; None for none. `initial`: the value before training."""
        if self.threshold is None or not self.relative:
            return self.threshold
        return None if initial is None else self.threshold * initial

    def worst(self, values: Sequence[float]) -> float:
        """Returns the least favourable of the layers' values."""
        return min(values) if self.higher_is_better else max(values)


class Section(NamedTuple):
    """A part of the report. Sections with the same title, of a method or of several runs, are shown as one."""

    title: str
    about: str
    diagnostics: tuple[Diagnostic, ...]


class Answer(NamedTuple):
    """`good` is None where the answer is unknown, or neither yes nor no."""

    text: str
    good: bool | None = None


class Question(NamedTuple):
    """A question that the report answers on top, from the rows with held-out numbers."""

    text: str
    answer: Callable[[Rows], Answer]


class Diagnostics(NamedTuple):
    """What a method offers to the report. `checks` see all rows and return a warning, or None.

    `against_collapse` is a sentence on what to change where features collapse.
    """

    sections: tuple[Section, ...] = ()
    questions: tuple[Question, ...] = ()
    checks: tuple[Callable[[Rows], str | None], ...] = ()
    against_collapse: str = ANTI_COLLAPSE

    @property
    def compared(self) -> list[Diagnostic]:
        """What the tables of sweeps show."""
        return [one for section in self.sections for one in section.diagnostics if one.compared]


# Of the value before training. On photographs (flickr8k, batch 32, learning rate 1e-3), the best run of several fell
# from 41 to 21 and came back to 37.
LOWEST_RANK = 0.25
# In the same run the constant vector held 18 % of the energy before training, 77 % at worst, and less later.
HIGHEST_CONSTANT = 0.9

TRAINING, FEATURES = "Loss and schedules", "Is it collapsing?"

# Logged by the train loop and by the monitor, whatever the method.
LOSS_SECTION = Section(TRAINING, "", (Diagnostic("loss", "loss", "Training loss, total"),))
SCHEDULES_SECTION = Section(
    TRAINING,
    "",
    (
        Diagnostic("gradient_norm", "gradient norm", "Gradient norm", log_scale=True),
        Diagnostic("learning_rate", "learning rate", "Learning rate"),
        Diagnostic("weight_decay", "weight decay", "Weight decay"),
        Diagnostic("images_per_second", "images per second", "Images per second"),
    ),
)


def features_section(advice: str = ANTI_COLLAPSE) -> Section:
    """The monitor's numbers of the evaluation encoder's features; `advice` is a sentence against collapse."""
    return Section(
        FEATURES,
        "Features of held-out images by the evaluation encoder, pooled except where it says patches. An early dip is "
        "usual. Collapse: RankMe without the mean near 1, a standard deviation near 0, a spectrum that falls off a "
        "cliff, or a constant vector that holds nearly all energy.",
        (
            Diagnostic(
                RANKME_CENTRED,
                "without the mean",
                "RankMe",
                "Effective number of directions that the features use. A constant vector, the same for all images, "
                "lowers RankMe as published though images differ as before: only RankMe without the mean is judged.",
                higher_is_better=True,
                threshold=LOWEST_RANK,
                relative=True,
                warning="Features use few directions",
                advice=advice,
            ),
            Diagnostic(RANKME, "as published", "RankMe"),
            Diagnostic(
                "rank/participation",
                "participation ratio",
                "Participation ratio",
                "Number of directions that hold the variance; unlike in RankMe, many small ones count little.",
            ),
            Diagnostic(
                CONSTANT_SHARE,
                "share of the energy",
                "Constant vector",
                "The share of the patch features' energy in the one vector that all of them have in common. It holds "
                "no information.",
                higher_is_better=False,
                threshold=HIGHEST_CONSTANT,
                warning="Patch features have been nearly one constant vector",
                advice=advice,
            ),
            Diagnostic(
                "rank/feature_std",
                "standard deviation",
                "Standard deviation of features",
                "How much the features differ between images.",
                higher_is_better=True,
                threshold=0.05,
                relative=True,
                warning="Features hardly differ between images",
            ),
            Diagnostic(
                "direction_*/deviation",
                "deviation",
                "Spectrum over time",
                "Standard deviation of the features along their principal directions number 1, 2, 4, 8, ...",
                log_scale=True,
            ),
        ),
    )
