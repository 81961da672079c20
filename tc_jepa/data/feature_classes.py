"""Check of a TFDS folder before TFDS opens it: TFDS imports the module of each feature class that the folder names.

The classes stand in features.json and may also stand in dataset_info.json (tensorflow_datasets 4.9.10,
core/features/feature.py `cls_from_name`, core/dataset_info.py `from_proto`): as pythonClassName, in older files as
type, nested as objects or as JSON inside of strings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from tc_jepa.errors import UserError
from tc_jepa.storage.reading import parse_json, read_regular

CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # Protocol Buffers read a field by either of its names
OWN_CLASSES = {
    name
    for feature in vars(tfds.features).values()
    if isinstance(feature, type) and issubclass(feature, tfds.features.FeatureConnector)
    for name in (f"{feature.__module__}.{feature.__name__}", *vars(feature).get("ALIASES", ()))
}


def check_feature_classes(folder: str) -> None:
    """Refuses a TFDS folder that names a feature class which is not one of TFDS's own. Imports nothing.

    Raises UserError for such a class, OSError for a file that cannot be read, and ValueError for invalid JSON.
    """
    for name, key in (("features.json", None), ("dataset_info.json", "features")):
        path = Path(folder) / name
        content = parse_json(read_regular(path))
        if key is not None:
            content = content.get(key) if isinstance(content, dict) else None
        for found in _class_names(content):
            if found not in OWN_CLASSES:
                why = "which is not one of TFDS's own and would be imported as code"
                raise UserError(f"{path} names the feature class {found!r}, {why}; write it with tfds.features")


def _class_names(value: Any) -> Iterator[str]:
    """Every class name in decoded JSON, also in strings that hold JSON themselves."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in CLASS_KEYS and isinstance(item, str):
                yield item
            else:
                yield from _class_names(item)
    elif isinstance(value, list):
        for item in value:
            yield from _class_names(item)
    elif isinstance(value, str):
        try:
            decoded = parse_json(value)
        except ValueError:
            return
        yield from _class_names(decoded)
