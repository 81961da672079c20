"""The table of datasets: from the name or path that the user gives to a sources.Dataset.

To add a dataset that is generated or downloaded rather than prepared, write a class with the methods of sources.Dataset
in a file of this package and add a line to DATASETS. Its name can then be given wherever a path can: `data.path`,
--data. Data in files of another layout is prepared instead (prepare/sources.py).
"""

from collections.abc import Callable, Mapping
import dataclasses

from tc_jepa.data.prepared import FeatureNames, PreparedDataset
from tc_jepa.data.scenes.source import ScenesDataset
from tc_jepa.data.sources import Dataset, SCENES


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """Settings for opening datasets. Each dataset uses those that apply to it."""

    features: FeatureNames = FeatureNames()  # of prepared folders
    encoded: bool = False  # of prepared folders: examples have an EncodedImage
    scenes: ScenesDataset = ScenesDataset()


DEFAULT_OPTIONS = DatasetOptions()

DATASETS: Mapping[str, Callable[[DatasetOptions], Dataset]] = {SCENES: lambda options: options.scenes}


def open_dataset(path: str, options: DatasetOptions = DEFAULT_OPTIONS) -> Dataset:
    """The dataset that `path` names: a key of DATASETS, "" for the scenes, or else a prepared folder.

    Nothing is read yet: the dataset's methods raise UserError for a folder that cannot be read.
    """
    name = path or SCENES
    return DATASETS[name](options) if name in DATASETS else PreparedDataset(path, options.features, options.encoded)
