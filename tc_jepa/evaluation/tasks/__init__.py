"""The table of evaluation tasks.

To add one: a file NAME.py in this folder that holds a task.Task called TASK, and a line here. Only `load` imports those
files, and with them JAX, so that names and descriptions are at hand for --help.
"""

from collections.abc import Mapping, Sequence
import importlib
from typing import TYPE_CHECKING

from absl import logging

from tc_jepa.errors import UserError

if TYPE_CHECKING:
    from tc_jepa.evaluation.task import Task

TASKS = {  # name and module -> description; tables of results come in this order
    "linear": "the VISSL recipe of I-JEPA (arXiv 2301.08243, App. A.2), the best of 24 linear heads trained by LARS",
    "linear_fast": "logistic regression fitted to the optimum, with a chosen strength of regularisation",
    "attentive": "the probe of V-JEPA, one cross-attention block with a learned query over the patches",
    "knn": "votes of the 20 and the 10 nearest by cosine, weighted at temperature 0.07",
    "lowshot": "linear_fast on 1 % and 10 % of the labels, 5 draws",
    "segmentation": "mean IoU and the IoU of each class, of a linear layer on patches and of their 20 nearest patches",
    "grounding": "whether a word's cosine map points at its object, and covers it",
    "zero_shot": "the class whose name, in a sentence, is nearest to the image; nothing is fitted",
    "retrieval": "recall at 1, 5 and 10 of an image's captions among all, and of a caption's image",
    "captioning": "captions that a decoder writes from the patches, by CIDEr-D and BLEU-4",
    "vqa": "answers of the same decoder to questions about the image",
    "rank": "RankMe, LiDAR, participation ratio and standard deviation, of pooled features and of patches",
}


def check(names: Sequence[str]) -> None:
    """Raises UserError for no task at all, or one that does not exist."""
    for name in names or [""]:
        if name not in TASKS:
            raise UserError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")


def possible(names: Sequence[str], lacking: Mapping[str, str], *, required: bool) -> list[str]:
    """The tasks of `names` that need nothing in `lacking`, which maps needs (LABELS, ...) to why they are not met.

    The others are logged; where they are `required`, the first raises UserError. So does an unknown name.
    """
    check(names)
    reasons = {name: next((lacking[need] for need in load(name).needs if need in lacking), "") for name in names}
    for reason in dict.fromkeys(filter(None, reasons.values())):
        left_out = [name for name in names if reasons[name] == reason]
        if required:
            raise UserError(f"--tasks={left_out[0]}: {reason}; leave it out")
        logging.warning("%s: left out, because %s", ", ".join(left_out), reason)
    return [name for name in names if not reasons[name]]


def load(name: str) -> "Task":
    """The record of a task of the table."""
    return importlib.import_module(f"{__name__}.{name}").TASK


def load_all() -> list["Task"]:
    """The records of all tasks, in the order of the table."""
    return [load(name) for name in TASKS]
