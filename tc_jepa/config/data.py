"""From a configuration to data: sources, word vectors and caption readers."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any

from absl import logging
import ml_collections

from tc_jepa.convert import t5
from tc_jepa.data.captions import tokenizer as captions
from tc_jepa.data.mixtures import Concatenation, Mixture
from tc_jepa.data.prepared import (
    data_identity,
    Features,
    file_identity,
    PreparedSource,
    splits,
    USUAL_FEATURES,
    vocabulary_path,
)
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Captioned, SCENES, Source, SPLITS, TEST, TRAIN, VALIDATION
from tc_jepa.data.word_vectors.folder import WordsFolder, WordVectors
from tc_jepa.errors import UserError
from tc_jepa.storage import hashing
from tc_jepa.storage.run_data import Found, Held, VECTORS

Config = ml_collections.ConfigDict

HELD_OUT_SCENES = 10_000  # each of validation and test; drawn on the fly, so only those that are read cost anything


def data_paths(config: Config) -> list[str]:
    return config.data.path.split(",") if config.data.path else []


def source(config: Config, split: str) -> Source:
    """One split with its labels, for an evaluation; UserError where there is none."""
    _one_dataset(config)
    if config.data.path:
        return PreparedSource(config.data.path, split, features(config))
    count = config.data.train_scenes if split == TRAIN else HELD_OUT_SCENES
    return SceneSource(config.data.scenes_seed, split, count, config.image.size, config.data.scenes_level)


def _one_dataset(config: Config) -> None:
    paths = data_paths(config)
    if len(paths) > 1:
        raise UserError(
            f"labels belong to one dataset: choose with --data or evaluation.data one of {', '.join(paths)}"
        )


def test_split(config: Config) -> str:
    """The split that an evaluation tests on. UserError where the data does not hold it."""
    _one_dataset(config)
    path, chosen = config.data.path, config.evaluation.test_split
    held = splits(path) if path else SPLITS
    if chosen == TRAIN:
        raise UserError("evaluation.test_split=train is what probes are fitted on; give another")
    if chosen and chosen not in held:
        raise UserError(f"evaluation.test_split={chosen} is none of {path or 'the scenes'}; it holds {', '.join(held)}")
    found = [split for split in (chosen, TEST, VALIDATION) if split in held]
    if not found:
        raise UserError(f"{path} holds only {', '.join(held)}; prepare it with a split test or val")
    return found[0]


def features(config: Config) -> Features:
    """What the data's features are to us."""
    data = config.data
    return Features(
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
        config.data.image_feature = USUAL_FEATURES.image
        config.data.caption_features = USUAL_FEATURES.captions
        config.data.description_features = USUAL_FEATURES.descriptions
        config.data.label_features = USUAL_FEATURES.labels
        config.data.mask_feature = USUAL_FEATURES.mask
    if data:
        config.data.path = "" if data == SCENES else data
    return config


def training_source(config: Config, words: Sequence[WordsFolder] = ()) -> Captioned:
    """What a run is trained on. `words` are the word_folders."""
    paths = data_paths(config)
    if not paths:
        return source(config, TRAIN)
    parts = [_prepared(config, path, TRAIN, words, number) for number, path in enumerate(paths)]
    if config.data.weights:
        return Mixture(parts, config.data.weights)
    return Concatenation(parts) if len(parts) > 1 else parts[0]


def held_out_source(config: Config, words: Sequence[WordsFolder] = ()) -> Captioned:
    """Validation data for the monitor, all that there is; where there is none, the training data, said once."""
    paths = data_paths(config)
    if not paths:
        return source(config, VALIDATION)
    numbers = [number for number, path in enumerate(paths) if VALIDATION in splits(path)]
    if not numbers:
        logging.warning("%s has no split %r: the monitor looks at training images", config.data.path, VALIDATION)
        return training_source(config, words)
    return Concatenation([_prepared(config, paths[number], VALIDATION, words, number) for number in numbers])


def _prepared(config: Config, path: str, split: str, words: Sequence[WordsFolder], number: int) -> Captioned:
    prepared = PreparedSource(path, split, features(config))
    return words[number].attach(prepared, split) if words else prepared


def word_folders(config: Config) -> list[WordsFolder]:
    """The stored word vectors, a folder for each dataset; none where a text encoder runs along.

    UserError where they were not all made alike, or otherwise than the configuration says.
    """
    if config.model.text != "stored":
        return []
    folders = [WordsFolder(path) for path in config.captions.vectors.split(",")]
    wanted: dict[str, tuple[str, Any]] = {"captions.words": ("words", config.captions.words)}
    if config.model.text_weights:
        wanted["model.text_weights"] = ("weights", hashing.parameters_sha256(*t5.load(config.model.text_weights)))
    if config.captions.vocabulary:
        wanted["captions.vocabulary"] = ("vocabulary", hashing.file_sha256(config.captions.vocabulary))
    for folder in folders:
        for name, (key, value) in wanted.items():
            folder.check(name, key, value)
        for key, value in dataclasses.asdict(folders[0].stamp).items():
            if key != "encoder" or folder.stamp.weights is None:  # a name, which says nothing beside a hash
                folder.check(folders[0].path, key, value)
    return folders


def run_data(config: Config, words: Sequence[WordsFolder]) -> Found:
    """What the data that a run reads holds, to be compared when it is resumed. `words` are the word_folders."""
    vocabulary = config.captions.vocabulary
    found = {
        "data.path": [Held(path, data_identity(path)) for path in data_paths(config)],
        VECTORS: [Held(folder.path, folder.identity) for folder in words],
        "captions.vocabulary": [Held(vocabulary, file_identity(vocabulary))] if vocabulary else [],
    }
    return {key: held for key, held in found.items() if held}


def caption_reader(config: Config, words: Sequence[WordsFolder] = ()) -> captions.CaptionReader:
    """Of the stored vectors where there are any, else of texts."""
    return WordVectors(words[0].stamp) if words else tokenizer(config)


def tokenizer(config: Config) -> captions.CaptionTokenizer:
    """By precedence: the T5's own vocabulary, the configured one, the one stored with the data, the scenes' own."""
    if config.model.text == "t5":
        path = t5.vocabulary(config.model.text_weights)
    elif config.captions.vocabulary:
        path = config.captions.vocabulary
    elif not config.data.path:
        path = captions.scenes_vocabulary_path()
    else:
        path = _common_vocabulary(data_paths(config))
    return captions.CaptionTokenizer(path, config.captions.words)


def _common_vocabulary(paths: Sequence[str]) -> str:
    found = {path: vocabulary_path(path) for path in paths}
    hashes = set()
    for path, vocabulary in found.items():
        if vocabulary is None:
            raise UserError(
                f"{path} holds no vocabulary; give --config.captions.vocabulary=FILE, a SentencePiece model"
            )
        hashes.add(hashing.file_sha256(vocabulary))
        if len(hashes) > 1:
            raise UserError(
                f"{path} holds another vocabulary than {paths[0]}; give --config.captions.vocabulary=FILE for both"
            )
    return found[paths[0]]
