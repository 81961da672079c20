"""retrieval: whether an image finds its captions among those of all test images, and a caption its image.

Recall at k: a caption is found if it is among the k of the highest cosine; an image's captions are, if one of its own
is. Of each image the first PER_IMAGE count, as in the Flickr30k and COCO protocols, which have five. A caption that
several images have, word for word, is right for all of them.
"""

import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.evaluation.scores import mean_of_images
from tc_jepa.evaluation.task import FeatureRequest, Outcome, Score, Task, TaskInputs, TEST_CAPTIONS, TOWER

PER_IMAGE = 5
RANKS = (1, 5, 10)


def run(inputs: TaskInputs) -> Outcome:
    """Scores "retrieval/captions_K" and "retrieval/images_K", with the recall of a random order as chance."""
    captions = [inputs.test.source[int(row)].captions[:PER_IMAGE] for row in inputs.test.rows]
    texts = list(dict.fromkeys(text for own in captions for text in own))
    if not texts:
        raise UserError("retrieval needs captions, and no test image has one; leave it out of --tasks")
    number = {text: i for i, text in enumerate(texts)}
    right = np.zeros((len(captions), len(texts)), bool)
    for row, own in enumerate(captions):
        right[row, [number[text] for text in own]] = True
    cosines = inputs.text.images(inputs.features["test"]["pooled"]) @ inputs.text.texts(texts).T

    found, counts = Outcome(), inputs.test.counts
    asking = np.flatnonzero(right.any(axis=1))
    image, text = np.nonzero(right)  # a caption of several images is asked for by each
    # By direction: cosines and truth with the questions in rows, which row each question is, and its image.
    directions = {"captions": (cosines, right, asking, asking), "images": (cosines.T, right.T, text, image)}
    for name, (scores, truth, rows, images) in directions.items():
        before = ranks(scores, truth)[rows]
        for k in RANKS:
            key = f"retrieval/{name}_{k}"
            found.scores[key] = mean_of_images(before < k, images, counts)
            found.constants[f"chance/{key}"] = float(chance(truth, k)[rows].mean())
    return found


TASK = Task(
    "retrieval",
    run,
    needs=(TOWER, TEST_CAPTIONS),
    features={"test": FeatureRequest("test", ("pooled",))},
    scores=(Score("retrieval", "Recall at 1, 5 and 10: captions of an image, and the image of a caption.", "recall"),),
)


def ranks(cosines_NxM: np.ndarray, right_NxM: np.ndarray) -> np.ndarray:
    """How many wrong ones come before the first right one in each row: int [N].

    Of equal cosines the wrong ones come first, so that an encoder that tells nothing apart finds nothing.
    """
    best = np.where(right_NxM, cosines_NxM, -np.inf).max(axis=1, keepdims=True)
    return ((cosines_NxM >= best) & ~right_NxM).sum(axis=1)


def chance(right_NxM: np.ndarray, k: int) -> np.ndarray:
    """The same in a random order: float [N]."""
    M, own = right_NxM.shape[1], right_NxM.sum(axis=1)
    missed = np.ones(len(own))
    for drawn in range(min(k, M)):
        missed *= np.maximum(M - own - drawn, 0) / (M - drawn)
    return 1.0 - missed
