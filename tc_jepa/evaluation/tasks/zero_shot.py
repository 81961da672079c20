"""zero_shot: classes by the cosine of an image and of the class's name in a sentence. Nothing is fitted.

The text embedding of a class is the mean over TEMPLATES, normalised again, as in CLIP (Radford et al. 2021, arXiv
2103.00020, section 3.1.4), which has 80 templates for ImageNet.
"""

import numpy as np

from tc_jepa.evaluation import labels
from tc_jepa.evaluation.task import FeatureRequest, LABELS, Outcome, Score, Task, TaskInputs, TOWER
from tc_jepa.evaluation.tower import FrozenTower

TEMPLATES = ("{}", "a {}", "a photo of a {}", "there is a {} in the picture")


def run(inputs: TaskInputs) -> Outcome:
    """Scores "zero_shot/LABELS"."""
    images = inputs.text.images(inputs.features["test"]["pooled"])
    answers = {
        ("zero_shot", name): labels.Answer([images @ class_embeddings(inputs.text, task.classes).T])
        for name, task in inputs.test.source.tasks.items()
    }
    return labels.outcome(inputs, answers)


TASK = Task(
    "zero_shot",
    run,
    needs=(LABELS, TOWER),
    features={"test": FeatureRequest("test", ("pooled",))},
    scores=(Score("zero_shot", "The class whose name, in a sentence, has the highest cosine; nothing is fitted."),),
)


def class_embeddings(tower: FrozenTower, classes: tuple[str, ...]) -> np.ndarray:
    """float32 [classes, P], of length 1."""
    names = [name.replace("_", " ") for name in classes]
    texts = tower.texts([template.format(name) for name in names for template in TEMPLATES])
    mean = texts.reshape(len(names), len(TEMPLATES), -1).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
