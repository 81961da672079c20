"""What the report and the tables of sweeps know of evaluation scores: whose they are, and their chance level."""

from collections.abc import Iterable, Mapping

from tc_jepa.evaluation import tasks
from tc_jepa.evaluation.results import BASELINES, BESIDE

__all__ = ["BASELINES", "chance", "is_fraction", "is_headline", "own_scores"]
ASIDE = (*(f"{name}/" for name in BESIDE), "gain_over_")  # of keys that are not the evaluated encoder's own scores


def is_headline(name: str) -> bool:
    """Whether a score such as "knn/shape" decides whether a run has learned."""
    score = tasks.all_scores().get(name.partition("/")[0])
    return score is not None and score.headline


def own_scores(names: Iterable[str]) -> list[str]:
    """Returns the scores of the evaluated encoder that have an interval, such as "knn/shape", in their order."""
    return [name.removesuffix("_low") for name in names if name.endswith("_low") and not name.startswith(ASIDE)]


def chance(scores: Mapping[str, float], name: str) -> float | None:
    """Returns the chance level of a score, as a fraction; None where the evaluation gives none."""
    return scores.get(f"chance/{name}", scores.get(f"chance/{name.partition('/')[2]}"))


def is_fraction(name: str) -> bool:
    """Whether a score such as "knn/shape" is a share of examples in 0-1."""
    return name.partition("/")[0] in tasks.all_scores()
