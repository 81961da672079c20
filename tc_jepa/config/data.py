"""From a configuration to data: sources, word vectors and caption readers."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

from absl import logging
import ml_collections

from tc_jepa.convert import t5
from tc_jepa.data.bad_records import Replacing
from tc_jepa.data.captions import tokenizer as captions
from tc_jepa.data.datasets import DatasetOptions, open_dataset
from tc_jepa.data.mixtures import Concatenation, Mixture
from tc_jepa.data.prepared import DEFAULT_FEATURES, FeatureNames, file_identity, PreparedDataset
from tc_jepa.data.scenes.source import ScenesDataset
from tc_jepa.data.sources import Captioned, Dataset, SCENES, Source, TEST, TRAIN, VALIDATION
from tc_jepa.data.transforms import Crop
from tc_jepa.data.word_vectors.folder import WordVectorFolder, WordVectorReader
from tc_jepa.errors import UserError
from tc_jepa.storage import hashing
from tc_jepa.storage.run_data import Found, Held, VECTORS

Config = ml_collections.ConfigDict

SHRINKS = ("area", "fast")


def data_paths(config: Config) -> list[str]:
    return config.data.path.split(",") if config.data.path else []


def datasets(config: Config, encoded: bool = False) -> list[Dataset]:
    """The datasets that a run trains on. `encoded`: their images are decoded by whoever crops them."""
    data = config.data
    scenes = ScenesDataset(config.image.size, data.train_scenes, data.scenes_seed, data.scenes_level)
    options = DatasetOptions(features(config), encoded, scenes)
    return [open_dataset(path, options) for path in data.path.split(",")]


def source(config: Config, split: str) -> Source:
    """One split with its labels, for an evaluation. Raises UserError if there is none."""
    return dataset(config).open(split)


def dataset(config: Config) -> Dataset:
    """The one dataset of an evaluation. Raises UserError where the configuration names several."""
    found = datasets(config)
    if len(found) > 1:
        names = ", ".join(dataset.name for dataset in found)
        raise UserError(f"labels belong to one dataset: choose with --data or evaluation.data one of {names}")
    return found[0]


def test_split(config: Config) -> str:
    """The split that an evaluation tests on. Raises UserError if the data does not have it."""
    tested, chosen = dataset(config), config.evaluation.test_split
    available = tested.splits()
    if chosen == TRAIN:
        raise UserError("evaluation.test_split=train is what probes are fitted on; give another")
    if chosen and chosen not in available:
        raise UserError(
            f"evaluation.test_split={chosen} is not a split of {tested.name}; it has {', '.join(available)}"
        )
    found = [split for split in (chosen, TEST, VALIDATION) if split in available]
    if not found:
        raise UserError(f"{tested.name} has only {', '.join(available)}; prepare it with a split test or val")
    return found[0]


def features(config: Config) -> FeatureNames:
    """What the data's features are to us."""
    data = config.data
    return FeatureNames(
        data.image_feature,
        tuple(data.caption_features),
        tuple(data.description_features),
        tuple(data.label_features),
        data.mask_feature,
    )


def on_data(config: Config, data: str) -> Config:
    """A copy of `config` that reads `data`, a prepared folder or SCENES, for an evaluation; "": the run's own.

    Of the run's own folders the features have the names that it gives them, of another the usual ones. Scenes are drawn
    as the run would draw them.
    """
    config = config.copy_and_resolve_references()
    if data and Path(data).resolve() not in [Path(path).resolve() for path in data_paths(config)]:
        config.data.image_feature = DEFAULT_FEATURES.image
        config.data.caption_features = DEFAULT_FEATURES.captions
        config.data.description_features = DEFAULT_FEATURES.descriptions
        config.data.label_features = DEFAULT_FEATURES.labels
        config.data.mask_feature = DEFAULT_FEATURES.mask
    if data:
        config.data.path = "" if data == SCENES else data
    return config


def crops_encoded(config: Config) -> bool:
    """Whether a run decodes only what a crop needs of an image."""
    return config.image.shrink == "fast"


def training_source(config: Config, words: Sequence[WordVectorFolder] = (), encoded: bool | None = None) -> Captioned:
    """What a run is trained on. `words` are the word_folders. `encoded`: as in `datasets`; None: as the run reads."""
    opened = datasets(config, crops_encoded(config) if encoded is None else encoded)
    parts = [_open(config, dataset, TRAIN, words, number) for number, dataset in enumerate(opened)]
    if config.data.weights:
        return Mixture(parts, config.data.weights)
    return Concatenation(parts) if len(parts) > 1 else parts[0]


def held_out_source(config: Config, words: Sequence[WordVectorFolder] = ()) -> Captioned:
    """All validation data, for the monitor; the training data, with a warning, if there is none."""
    opened = datasets(config, crops_encoded(config))
    found = [(number, dataset) for number, dataset in enumerate(opened) if VALIDATION in dataset.splits()]
    if not found:
        logging.warning("%s has no split %r: the monitor looks at training images", config.data.path, VALIDATION)
        return training_source(config, words)
    parts = [_open(config, dataset, VALIDATION, words, number) for number, dataset in found]
    return Concatenation(parts) if len(parts) > 1 else parts[0]


def _open(config: Config, dataset: Dataset, split: str, words: Sequence[WordVectorFolder], number: int) -> Captioned:
    source = dataset.open(split)
    source = words[number].attach(source, split) if words else source
    if config.data.bad_records == "replace":
        return Replacing(source, f"{dataset.name}, split {split}", config.data.bad_records_share)
    return source


def word_folders(config: Config) -> list[WordVectorFolder]:
    """The stored word vectors, a folder for each dataset; none where a text encoder runs along.

    UserError where they were not all made alike, or otherwise than the configuration says.
    """
    if config.model.text != "stored":
        return []
    folders = [WordVectorFolder(path) for path in config.captions.vectors.split(",")]
    wanted: dict[str, tuple[str, Any]] = {"captions.words": ("words", config.captions.words)}
    if config.model.text_weights:
        wanted["model.text_weights"] = ("weights", hashing.parameters_sha256(*t5.load(config.model.text_weights)))
    if config.captions.vocabulary:
        wanted["captions.vocabulary"] = ("vocabulary", hashing.file_sha256(config.captions.vocabulary))
    for folder in folders:
        for name, (key, value) in wanted.items():
            folder.check(name, key, value)
        for key, value in dataclasses.asdict(folders[0].info).items():
            if key != "encoder" or folder.info.weights is None:  # a name, which says nothing beside a hash
                folder.check(folders[0].path, key, value)
    return folders


def run_data(config: Config, words: Sequence[WordVectorFolder]) -> Found:
    """What the data and the T5 that a run reads hold, to be compared when it is resumed.

    `words` are the word_folders.
    """
    vocabulary, weights = config.captions.vocabulary, config.model.text_weights
    found = {
        "data.path": [Held(path, PreparedDataset(path).identity()) for path in data_paths(config)],
        VECTORS: [Held(folder.path, folder.identity) for folder in words],
        "captions.vocabulary": [Held(vocabulary, file_identity(vocabulary))] if vocabulary else [],
        "model.text_weights": [Held(weights, _t5_identity(weights))] if config.model.text == "t5" else [],
    }
    return {key: held for key, held in found.items() if held}


def _t5_identity(folder: str) -> dict[str, Any]:
    """The identity of each file that a T5's word vectors depend on, by file name."""
    files = [Path(folder) / name for name in (t5.CONFIG, t5.VOCABULARY)] + sorted(Path(folder).glob("*.safetensors"))
    return {file.name: file_identity(file) for file in files}


def crop(config: Config) -> Crop:
    """The random crop of a training image."""
    image = config.image
    return Crop(image.size, tuple(image.crop_scale), tuple(image.crop_aspect), image.flip)


def caption_reader(config: Config, words: Sequence[WordVectorFolder] = ()) -> captions.CaptionReader:
    """Of the stored vectors where there are any, else of texts."""
    return WordVectorReader(words[0].info) if words else tokenizer(config)


def tokenizer(config: Config) -> captions.CaptionTokenizer:
    """Of the captions that a run reads."""
    return captions.CaptionTokenizer(_vocabulary(config), config.captions.words)


def writing_tokenizer(config: Config) -> captions.CaptionTokenizer:
    """Of the texts that an evaluation's decoder reads and writes."""
    chosen = config.evaluation
    return captions.CaptionTokenizer(chosen.vocabulary or _vocabulary(config), chosen.words)


def _vocabulary(config: Config) -> str:
    """By precedence: the T5's own vocabulary, the configured one, the one that comes with the data."""
    if config.model.text == "t5":
        return t5.vocabulary(config.model.text_weights)
    return config.captions.vocabulary or _common_vocabulary(datasets(config))


def has_vocabulary(config: Config) -> bool:
    """Whether an evaluation can write texts: with a configured vocabulary, or one that comes with the data."""
    given = config.evaluation.vocabulary or config.captions.vocabulary or config.model.text == "t5"
    return bool(given) or all(one.vocabulary_path() is not None for one in datasets(config))


def _common_vocabulary(found: Sequence[Dataset]) -> str:
    paths, hashes = [dataset.vocabulary_path() for dataset in found], set()
    for dataset, path in zip(found, paths):
        if path is None:
            raise UserError(
                f"{dataset.name} has no vocabulary; give --config.captions.vocabulary=FILE, a SentencePiece model"
            )
        hashes.add(hashing.file_sha256(path))
        if len(hashes) > 1:
            raise UserError(
                f"{dataset.name} has another vocabulary than {found[0].name}; give --config.captions.vocabulary=FILE "
                "for both"
            )
    return paths[0]
