"""From a configuration to supervised training: method.name=supervised."""

from collections.abc import Mapping, Sequence

import ml_collections

from tc_jepa.config import data, models
from tc_jepa.config.parts import MethodParts
from tc_jepa.config.stateless import averages_encoder as averages_encoder
from tc_jepa.config.stateless import reads_captions as reads_captions
from tc_jepa.config.stateless import teacher_path as teacher_path
from tc_jepa.data.inputs.labels import CropAndLabels
from tc_jepa.data.sources import LabelSet, TRAIN
from tc_jepa.data.word_vectors.folder import WordVectorFolder
from tc_jepa.errors import UserError
from tc_jepa.methods.reporting import Diagnostics
from tc_jepa.methods.supervised import Supervised, Task
from tc_jepa.models.kernels.backend import Backend, PLAIN
from tc_jepa.models.label_heads import LabelHeads
from tc_jepa.models.vit import VisionTransformer

Config = ml_collections.ConfigDict


def build(
    config: Config,
    words: Sequence[WordVectorFolder] = (),
    backend: Backend = PLAIN,
    teacher: VisionTransformer | None = None,
) -> MethodParts:
    """Returns the method and its inputs. It reads no captions and has no teacher. UserError for data without labels."""
    chosen = label_sets(config)
    heads = LabelHeads(tuple((name, len(x.classes)) for name, x in chosen.items()), models.linear(config))
    tasks = tuple(Task(name, x.kind) for name, x in chosen.items())
    method = Supervised(models.trained_encoder(config, backend), heads, tasks)
    inputs = CropAndLabels(data.crop(config), tuple(chosen))
    return MethodParts(method, inputs, inputs)


def label_sets(config: Config) -> Mapping[str, LabelSet]:
    """Returns the tasks that are learned. UserError where the data does not have them."""
    found = data.source(config, TRAIN).tasks
    path, names = config.data.path, tuple(config.supervised.tasks) or tuple(found)
    if not found:
        raise UserError(
            f"method.name=supervised needs labels, and {path} has none; give another data.path", about="data.path"
        )
    unknown = [name for name in names if name not in found]
    if unknown or len(set(names)) < len(names):
        raise UserError(
            f"supervised.tasks={names} must be different ones of the data's tasks: {', '.join(found)}",
            about="supervised.tasks",
        )
    return {name: found[name] for name in names}


def check(config: Config) -> None:
    """Raises UserError, naming the key, where labels cannot be learned by a configuration."""
    if len(data.data_paths(config)) > 1:
        raise UserError(
            f"data.path={config.data.path} are several datasets, and method.name=supervised learns the labels of one; "
            "give one",
            about="data.path",
        )


def reads_labels(config: Config) -> bool:
    return True


def diagnostics(config: Config) -> Diagnostics:
    """Nothing beyond what every method offers: losses without a description of their own are charted by name."""
    return Diagnostics()
