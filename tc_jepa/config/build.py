"""The door: from a resolved configuration to the typed objects that the rest of the library takes."""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections

from tc_jepa import optimizer
from tc_jepa.data import pipeline
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
from tc_jepa.masking import BlockMasks, MaskSampler, OfficialMasks, RandomMasks
from tc_jepa.methods import targets
from tc_jepa.methods.losses import Objective
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners import base as conditioner
from tc_jepa.models.conditioners import fusion
from tc_jepa.models.conditioners.compared import AdaptiveNorm, InputFeature, WordSequence
from tc_jepa.models.conditioners.cross_attention import CaptionCrossAttention, CrossAttentionForm, WordCrossAttention
from tc_jepa.models.layers import Params
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.text.embedding import EmbeddingText, StoredWords
from tc_jepa.models.text.t5 import T5Encoder
from tc_jepa.pretrained import caption_encoder as text_encoding
from tc_jepa.pretrained.convert import t5
from tc_jepa.state import Networks
from tc_jepa.storage.run_data import Found, Held, VECTORS

Config = ml_collections.ConfigDict
Constrain = Callable[[jax.Array], jax.Array]

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
HELD_OUT_SCENES = 10_000  # each of validation and test; drawn on the fly, so only those that are read cost anything


def unconstrained(x: jax.Array) -> jax.Array:
    return x


def grid(config: Config) -> tuple[int, int]:
    side = config.image.size // config.model.patch_size
    return side, side


def encoder(config: Config, constrain: Constrain = unconstrained) -> vit.VisionTransformer:
    return vit.VisionTransformer(
        vit.SIZES[config.model.encoder], config.model.patch_size, linear(config), constrain=constrain
    )


def linear(config: Config) -> layers.Linear:
    return layers.Linear(DTYPES[config.model.dtype], config.model.init_std, INITS[config.model.init])


def networks(
    config: Config,
    text_encoder: EmbeddingText | StoredWords | T5Encoder | None,
    teacher: vit.VisionTransformer | None = None,
    constrain: Constrain = unconstrained,
) -> Networks:
    online = encoder(config, constrain)
    predicted = target(config, online, teacher)
    return Networks(
        encoder=online,
        predictor=Predictor(
            grid=grid(config),
            width=config.model.predictor.width,
            depth=config.model.predictor.depth,
            heads=vit.SIZES[config.model.encoder].heads,
            output_width=predicted.width,
            conditioner=CONDITIONERS[config.model.conditioner](config),
            linear=linear(config),
            position_noise=config.model.position_noise,
            constrain=constrain,
        ),
        text=text_encoder,
        target=predicted,
        joint_targets=config.model.joint_targets,
    )


def target(config: Config, online: vit.VisionTransformer, teacher: vit.VisionTransformer | None) -> targets.Target:
    if config.target_encoder.kind == "ema":
        return targets.EmaEncoder(online, config.target_encoder.normalise)
    if config.target_encoder.kind == "frozen":
        return targets.FrozenEncoder(teacher, config.target_encoder.normalise)
    if config.target_encoder.kind == "pixels":
        return targets.Pixels(config.model.patch_size)
    raise UserError(f"target_encoder.kind={config.target_encoder.kind!r} is unknown; one of {', '.join(TARGETS)}")


def text_encoder(
    config: Config, reader: captions.CaptionReader | None
) -> tuple[EmbeddingText | StoredWords | T5Encoder | None, Params]:
    """The text encoder of what `reader` reads, and its parameters where they are not trained (else none).

    Without a reader there is no text encoder, and none is loaded.
    """
    if reader is None:
        return None, {}
    if config.model.text == "embedding":
        words = config.captions.words
        return EmbeddingText(reader.vocabulary_size, config.model.text_width, words, config.model.init_std), {}
    if config.model.text == "t5":
        size, params = t5.load(config.model.text_weights)
        t5.check_vocabulary(size, reader.vocabulary_size, t5.vocabulary(config.model.text_weights))
        return T5Encoder(size, DTYPES[config.model.text_dtype]), {"text": params}
    if config.model.text == "stored":
        return StoredWords(), {"text": {}}
    raise UserError(f"model.text={config.model.text!r} is unknown; one of {', '.join(TEXT_ENCODERS)}")


def cross_attention_layers(config: Config) -> tuple[int, ...]:
    return tuple(config.conditioner.layers) or tuple(range(config.model.predictor.depth))


def cross_attention_form(config: Config) -> CrossAttentionForm:
    chosen = config.conditioner
    return CrossAttentionForm(
        heads=chosen.heads,
        scaled=chosen.scaled,
        pre_norm=chosen.pre_norm,
        mlp_ratio=chosen.mlp_ratio,
        post_norm=chosen.post_norm,
        fuse_first=chosen.fuse_first,
        fusion=FUSIONS[chosen.fusion],
    )


CONDITIONERS = {
    "none": lambda config: conditioner.Conditioner(),
    "word_cross_attention": lambda config: WordCrossAttention(
        cross_attention_layers(config), linear(config), cross_attention_form(config)
    ),
    "caption_cross_attention": lambda config: CaptionCrossAttention(
        cross_attention_layers(config), linear(config), cross_attention_form(config)
    ),
    "adaln": lambda config: AdaptiveNorm(linear(config), FUSIONS[config.conditioner.fusion]),
    "feature": lambda config: InputFeature(linear(config), FUSIONS[config.conditioner.fusion]),
    "sequence": lambda config: WordSequence(linear(config)),
}
FUSIONS = {"max": fusion.MaxPool, "mean": fusion.MeanPool, "attention": fusion.AttentionPool}
INITS = {"official": False, "depth_rescaled": True}  # of layers.Linear.depth_rescaled
TEXT_ENCODERS = ("embedding", "t5", "stored")
TARGETS = ("ema", "frozen", "pixels")


def objective(config: Config) -> Objective:
    return Objective(**config.objective)


def schedules(config: Config) -> optimizer.Schedules:
    return optimizer.Schedules(
        steps=config.train.steps,
        warmup_steps=config.optimizer.warmup_steps,
        start_learning_rate=config.optimizer.start_learning_rate,
        peak_learning_rate=config.optimizer.peak_learning_rate,
        final_learning_rate=config.optimizer.final_learning_rate,
        start_weight_decay=config.optimizer.start_weight_decay,
        final_weight_decay=config.optimizer.final_weight_decay,
        start_momentum=config.target_encoder.start_momentum,
        final_momentum=config.target_encoder.final_momentum,
    )


def masks(config: Config) -> MaskSampler:
    """UserError where the settings cannot be met."""
    return MASKS[config.masking.kind](config)


def _random_masks(config: Config) -> RandomMasks:
    masking = config.masking
    return RandomMasks(
        grid(config), masking.target_blocks, tuple(masking.ratio), masking.context_tokens, masking.min_context
    )


def _block_settings(config: Config) -> dict[str, Any]:
    masking = config.masking
    return {
        "grid": grid(config),
        "target_blocks": masking.target_blocks,
        "target_scale": tuple(masking.target_scale),
        "target_aspect": tuple(masking.target_aspect),
        "context_scale": tuple(masking.context_scale),
        "context_aspect": tuple(masking.context_aspect),
        "context_tokens": masking.context_tokens,
        "min_context": masking.min_context,
    }


MASKS = {
    "fixed": lambda config: BlockMasks(**_block_settings(config)),
    "official": lambda config: OfficialMasks(**_block_settings(config), group_size=config.masking.group_size),
    "random": _random_masks,
}


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
    """The stored word vectors, a folder for each dataset; none where a text encoder runs along or nothing is read.

    UserError where they were not all made alike, or otherwise than the configuration says.
    """
    if not reads_captions(config) or config.model.text != "stored":
        return []
    folders = [WordsFolder(path) for path in config.captions.vectors.split(",")]
    wanted: dict[str, tuple[str, Any]] = {"captions.words": ("words", config.captions.words)}
    if config.model.text_weights:
        wanted["model.text_weights"] = ("weights", text_encoding.fingerprint(*t5.load(config.model.text_weights)))
    if config.captions.vocabulary:
        wanted["captions.vocabulary"] = ("vocabulary", text_encoding.file_sha256(config.captions.vocabulary))
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


def reads_captions(config: Config) -> bool:
    """Whether the predictor has a conditioner that reads captions; without one (I-JEPA) no vocabulary is needed."""
    return config.model.conditioner != "none"


def caption_reader(config: Config, words: Sequence[WordsFolder] = ()) -> captions.CaptionReader | None:
    """Of the stored vectors where there are any, else of texts; None where the predictor reads no captions."""
    if not reads_captions(config):
        return None
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
        hashes.add(text_encoding.file_sha256(vocabulary))
        if len(hashes) > 1:
            raise UserError(
                f"{path} holds another vocabulary than {paths[0]}; give --config.captions.vocabulary=FILE for both"
            )
    return found[paths[0]]


def augment(config: Config, reader: captions.CaptionReader | None) -> pipeline.Augment:
    image = config.image
    crop = pipeline.Crop(image.size, tuple(image.crop_scale), tuple(image.crop_aspect), image.flip)
    return pipeline.Augment(crop, reader, config.captions.per_image, config.captions.candidates)
