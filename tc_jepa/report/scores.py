"""What the report and the tables of sweeps know of evaluation scores: whose they are, and their chance level."""

from collections.abc import Iterable, Mapping

from tc_jepa.evaluation.results import BASELINES, BESIDE, PROBED

__all__ = ["BASELINES", "chance", "is_fraction", "is_headline", "own_scores"]
HEADLINE = ("linear_fast", "knn", "segmentation")  # evaluation tasks that decide whether a run has learned
ASIDE = (*(f"{name}/" for name in BESIDE), "gain_over_")  # of keys that are not the evaluated encoder's own scores


def is_headline(name: str) -> bool:
    """Whether a score such as "knn/shape" decides whether a run has learned."""
    return name.partition("/")[0] in HEADLINE


def own_scores(names: Iterable[str]) -> list[str]:
    """Returns the scores of the evaluated encoder that have an interval, such as "knn/shape", in their order."""
    return [name.removesuffix("_low") for name in names if name.endswith("_low") and not name.startswith(ASIDE)]


def chance(scores: Mapping[str, float], name: str) -> float | None:
    """Returns the chance level of a score, as a fraction; None where the evaluation gives none."""
    return scores.get(f"chance/{name}", scores.get(f"chance/{name.partition('/')[2]}"))


def is_fraction(name: str) -> bool:
    """Whether a score such as "knn/shape" is a share of examples in 0-1."""
    return name.partition("/")[0] in PROBED
