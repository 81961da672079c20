"""Images with captions, labels or masks, or scenes -> one folder: a TFDS dataset in ArrayRecord form.

Images are stored as the bytes they came in, decoded once to prove that they can be. Each split keeps the order of its
origin, whatever the number of processes.
"""

from tc_jepa.data.prepare.folder import prepare_folder
from tc_jepa.data.prepare.imagefolder import prepare_imagefolder
from tc_jepa.data.prepare.scenes import prepare_scenes
from tc_jepa.data.prepare.segmentation import prepare_segmentation
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.prepare.tars import prepare_tars

__all__ = [
    "prepare_folder",
    "prepare_imagefolder",
    "prepare_scenes",
    "prepare_segmentation",
    "prepare_tars",
    "Summary",
]
