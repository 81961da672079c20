"""Did a run learn, and from the words? The answer in words, and a warning for every number that looks wrong.

Pure functions of what a run wrote down: the lines of its metrics.jsonl and, if it was evaluated, its results.json.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import NamedTuple

Rows = Sequence[Mapping[str, float]]  # lines of metrics.jsonl, each with "step"

SHUFFLED = "text_worth/shuffled"
NO_EFFECT = 0.01  # of the held-out loss: less than this, other images' captions are as good as an image's own
HEALTHY_EFFECT = 0.02  # what a run that reads should reach once the warm-up is over
DEAD_COSINES = 1e-4  # share of positive cosines: below, the paper's regularisers touch next to nothing
UNIFORM = 0.98  # of the highest entropy of attention: all words are read alike
LEAST_RANK = 0.5  # of RankMe at initialisation; it dips early in healthy runs, too
COLLAPSED_STD = 0.05  # of the deviation of features at initialisation
MUCH_DROPPED = 1.0  # times the context patches that are kept
PROBES = ("linear_fast/", "knn/", "segmentation/")


class Verdict(NamedTuple):
    """`learned` and `words` answer the two questions, a sentence each. `warnings` are sentences, too."""

    learned: str
    words: str
    warnings: list[str]


def judge(
    rows: Rows,
    scores: Mapping[str, float] | None,
    *,
    reads_captions: bool,
    rectified: bool,
    scores_step: int | None = None,
) -> Verdict:
    """`reads_captions`: the run has a conditioner. `rectified`: its regularisers act on rectified cosines.

    `scores_step`: the step of the checkpoint that the scores are of, where it is known.
    """
    looks = [row for row in rows if "rank/rankme" in row]
    warnings = _warnings(rows, looks, reads_captions, rectified)
    last = max(row["step"] for row in rows)
    if scores_step is not None and scores_step < last:
        # A run that went on has other features than those that were judged.
        warnings.append(f"The scores are of step {scores_step}, and the run is at step {last}: evaluate it again.")
    return Verdict(_learned(scores), _words(looks, reads_captions), warnings)


def since(looks: Rows, key: str, bad: Callable[[float], bool]) -> int | None:
    """The first step from which on a number was bad at every look to the last; None where the last is not bad.

    The state before training says nothing: step 0 is left out.
    """
    first = None
    for look in looks:
        if key in look and look["step"] > 0:
            first = (look["step"] if first is None else first) if bad(look[key]) else None
    return first


def _learned(scores: Mapping[str, float] | None) -> str:
    if scores is None:
        return "Unknown: this run has not been evaluated."
    prefix = "gain_over_init/"
    names = [key.removeprefix(prefix) for key in scores if key.startswith(prefix) and f"{key}_low" in scores]
    names = [name for name in names if name.startswith(PROBES)]
    if not names:
        return "Unknown: no score of this run has a baseline; evaluate it with tasks that need labels or masks."
    gains = {name: scores[f"{prefix}{name}"] for name in names}
    better = [name for name in names if scores[f"{prefix}{name}_low"] > 0]
    worse = [name for name in names if scores[f"{prefix}{name}_high"] < 0]
    tally = f"{len(better)} of {len(names)} scores of the frozen encoder are above its own at initialisation"
    below = f", {len(worse)} below" if worse else ""
    if not better:
        return f"No: {tally} beyond their intervals{below}."
    best = max(better, key=gains.get)
    answer = "Yes" if len(better) > len(worse) else "In part"
    return f"{answer}: {tally} beyond their intervals{below} (most: {best}, {100 * gains[best]:+.1f} points)."


def _words(looks: Rows, reads_captions: bool) -> str:
    if not reads_captions:
        return "It reads none: model.conditioner is none, which is I-JEPA."
    worths = [(look["step"], look[SHUFFLED]) for look in looks if SHUFFLED in look and look["step"] > 0]
    if not worths:
        return "Unknown: the run has not yet looked at held-out images."
    step, worth = worths[-1]
    if not math.isfinite(worth):
        return f"Unknown: the held-out prediction loss is not finite at step {step}."
    effect = f"other images' captions change the held-out prediction loss by {100 * worth:+.1f} % at step {step}"
    if worth >= HEALTHY_EFFECT:
        # The loss is the predictor's: an encoder may be no better for words that its predictor reads well.
        return f"They are read: {effect}. Whether the encoder is better for it, only a run without them can tell."
    return f"{'Barely' if worth >= NO_EFFECT else 'No'}: {effect} (healthy: at least +{100 * HEALTHY_EFFECT:.0f} %)."


def _warnings(rows: Rows, looks: Rows, reads_captions: bool, rectified: bool) -> list[str]:
    found = []
    if not any(look["step"] > 0 for look in looks):
        found.append("The run has not looked at held-out images since it began, so that little can be said of it.")
    for key in looks[-1] if looks else ():
        # What is not a number is below no threshold: without this it would pass every check that follows.
        step = since(looks, key, lambda value: not math.isfinite(value))
        if step is not None:
            found.append(f"{key} has not been finite since step {step}.")
    if reads_captions:
        step = since(looks, SHUFFLED, lambda worth: worth < NO_EFFECT)
        if step is not None:
            found.append(f"Captions have had no effect since step {step}: shuffled ones predict as well, within 1 %.")
        if any("captions" in row for row in rows) and not any(row["captions"] for row in rows if "captions" in row):
            found.append("No image of any logged step had a caption.")
    for key in looks[-1] if looks else ():
        layer, _, measure = key.partition("/")
        name = f"layer {layer.removeprefix('layer_')} of the predictor"
        if measure == "positive_cosines" and rectified:
            step = since(looks, key, lambda share: share < DEAD_COSINES)
            if step is not None:
                found.append(
                    f"The regularisers are dead in {name} since step {step}: fewer than 1 in 10,000 cosines are "
                    "positive, and only those count. Lower objective.sparsity, or warm it up."
                )
        if measure == "attention_entropy":
            step = since(looks, key, lambda entropy: entropy > UNIFORM)
            if step is not None:
                found.append(f"Attention in {name} reads all words alike since step {step}.")
    for key, least, what in (
        ("rank/rankme", LEAST_RANK, "Features use few directions"),
        ("rank/feature_std", COLLAPSED_STD, "Features hardly differ between images"),
    ):
        first = next((look[key] for look in looks if look["step"] == 0), None)
        step = None if first is None else since(looks, key, lambda value: value < least * first)
        if step is not None:
            last = looks[-1][key]
            found.append(f"{what} since step {step}: {key} is {last:.3g}, and was {first:.3g} before training.")
    kept, dropped = (
        sum(row[key] for row in rows if key in row) / max(1, sum(key in row for row in rows))
        for key in ("context_tokens", "context_dropped")
    )
    if dropped > MUCH_DROPPED * kept:
        found.append(
            f"Much of the context is thrown away: masking.context_tokens keeps {kept:.0f} patches of an image and "
            f"drops {dropped:.0f}; raise it if that is not meant."
        )
    return found
