"""Every configuration key, declared once: name, default, whether it changes results, meaning and unit.

An experiment is a file beside this one whose get_config() starts from `get_config()` here and sets what differs; its
docstring is the experiment's documentation. The defaults are ViT-B/16 at 224 px as in the paper, on 100,000 steps.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from tc_jepa.storage.files import local_path


@dataclasses.dataclass(frozen=True)
class Key:
    """`changes_results` tells an experiment key from a runtime key, which may change between resumes of one run.

    `path`: the value is a path, or several separated by commas.
    """

    name: str
    default: Any
    changes_results: bool
    meaning: str
    path: bool = False


def experiment(name: str, default: Any, meaning: str, *, path: bool = False) -> Key:
    return Key(name, default, True, meaning, path)


def runtime(name: str, default: Any, meaning: str, *, path: bool = False) -> Key:
    return Key(name, default, False, meaning, path)


KEYS = (
    experiment("method.name", "jepa", "what is learned: jepa"),
    experiment("train.seed", 0, "seed of initialisation, data order, crops, captions and masks"),
    experiment(
        "train.init_from", "", "begin with the weights of a workdir, a converted or a Hugging Face folder", path=True
    ),
    experiment("train.steps", 100_000, "length of the run in steps; every schedule spans it"),
    experiment("train.batch_size", 2048, "images a step, over all devices and hosts"),
    runtime("train.log_every", 50, "steps between two lines of metrics.jsonl"),
    runtime("train.checkpoint_every", 1000, "steps between two checkpoints; the last step always has one"),
    runtime("train.keep_checkpoints", 2, "checkpoints kept, the newest ones"),
    runtime("train.eval_every", 1000, "steps between two looks at held-out images (rank, text worth, regularisers)"),
    runtime(
        "train.eval_tasks",
        "",
        "of knn, linear_fast, lowshot, rank (8 crops an image), at every train.eval_every",
    ),
    runtime("train.eval_examples", 1000, "examples that train.eval_tasks are fitted on, and tested on, at most"),
    experiment(
        "data.path",
        "",
        "prepared dataset (launch.prepare_data), or several separated by commas; empty: scenes drawn on the fly",
        path=True,
    ),
    experiment(
        "data.weights",
        (),
        "exact ratio of the images drawn from several datasets, such as (7, 3); empty: every image once an epoch",
    ),
    experiment(
        "data.image_feature", "image", "the feature of data.path that is the image; TFDS datasets have their own names"
    ),
    experiment(
        "data.caption_features",
        (),
        "features of data.path, texts or sequences of them, that are pooled as candidates; dots reach into nested ones "
        "(captions.text); empty: captions, where it has any",
    ),
    experiment(
        "data.description_features", (), "features of data.path with long texts, each sentence of which is a candidate"
    ),
    experiment("data.label_features", (), "label features of data.path to judge by; empty: all that are not nested"),
    runtime("data.mask_feature", "", "mask feature of data.path to judge by; empty: mask, where it has one"),
    runtime("data.workers", 0, "processes that prepare batches; 0: threads of the main process"),
    experiment("data.train_scenes", 1_000_000, "distinct training scenes (without data.path)"),
    experiment("data.scenes_seed", 0, "seed of the scenes themselves, apart from train.seed"),
    experiment("data.scenes_level", "standard", "standard: 1 to 5 objects; hard: 5 to 8, which hide each other more"),
    experiment("image.size", 224, "side of a crop in pixels"),
    experiment("image.crop_scale", (0.3, 1.0), "area of a random crop, as a fraction of the image"),
    experiment("image.crop_aspect", (3 / 4, 4 / 3), "width / height of a random crop before it is resized"),
    experiment("image.flip", False, "mirror half the images; makes 'left of' in captions false"),
    experiment("captions.per_image", 8, "captions sampled from an image's candidates, at most"),
    experiment("captions.candidates", 0, "only so many of an image's captions are candidates, the first; 0: all"),
    experiment(
        "captions.shuffled", False, "a control: images of a batch get each other's captions, which say nothing of them"
    ),
    experiment("captions.words", 32, "pieces a caption is padded or cut to, end of sentence included"),
    experiment(
        "captions.vocabulary",
        "",
        "SentencePiece model; empty: the one stored with the data, or the scenes' own",
        path=True,
    ),
    experiment(
        "captions.vectors",
        "",
        "folder of word vectors (launch.encode_captions; text=stored), for several datasets one each, with commas",
        path=True,
    ),
    experiment(
        "masking.kind",
        "fixed",
        "fixed: blocks drawn for each image, over the whole grid; official: as I-JEPA's released code draws them; "
        "random: patch by patch",
    ),
    experiment("masking.target_blocks", 4, "blocks to predict (random: 1)"),
    experiment("masking.target_scale", (0.15, 0.2), "area of a target block, as a fraction of the grid (not random)"),
    experiment("masking.target_aspect", (0.75, 1.5), "height / width of a target block (not random)"),
    experiment(
        "masking.context_scale",
        (0.85, 1.0),
        "area of the context block before targets are cut out of it, as a fraction of the grid (not random)",
    ),
    experiment("masking.context_aspect", (1.0, 1.0), "height / width of the context block (not random)"),
    experiment(
        "masking.context_tokens",
        80,
        "context patches kept at most; a surplus is dropped uniformly at random (official: from the bottom of the "
        "image) and counted as context_dropped",
    ),
    experiment("masking.min_context", 10, "context patches left at least (official: more, and in target blocks too)"),
    experiment(
        "masking.group_size",
        32,
        "official only: consecutive images that share block sizes and the length of the shortest context, as a GPU's "
        "batch does in that code",
    ),
    experiment("masking.ratio", (0.4, 0.6), "random only: share of the patches that is hidden"),
    experiment("model.encoder", "base", "size of the ViT: nano, tiny, small, base, large, huge, giant"),
    experiment("model.patch_size", 16, "side of a patch in pixels"),
    experiment("model.predictor.width", 384, "channels of the predictor; its heads are as many as the encoder's"),
    experiment("model.predictor.depth", 6, "blocks of the predictor"),
    experiment("model.conditioner", "word_cross_attention", "how the predictor reads captions; none is I-JEPA"),
    experiment(
        "model.text", "embedding", "text encoder; embedding: learned along; t5: a frozen T5; stored: captions.vectors"
    ),
    experiment("model.text_width", 256, "channels of the learned word vectors (text=embedding)"),
    experiment(
        "model.text_weights",
        "",
        "Hugging Face folder of the T5 (text=t5): safetensors and spiece.model; text=stored compares, if given",
        path=True,
    ),
    experiment("model.text_dtype", "float32", "type of the T5's parameters and products: float32 or bfloat16"),
    experiment("model.position_noise", 0.0, "StoP's sigma, variance of the noise in mask tokens' places; 0: off"),
    experiment("model.joint_targets", False, "predict all target blocks in one sequence, not each in its own"),
    experiment("model.dtype", "bfloat16", "type of matrix products: float32 or bfloat16; parameters are float32"),
    experiment(
        "model.init_std", 0.02, "deviation of initial kernels; 0.02 is the official one, for widths around 1,000"
    ),
    experiment(
        "model.init", "official", "official: all kernels begin alike; depth_rescaled: deeper residual branches smaller"
    ),
    experiment("conditioner.layers", (), "predictor layers with cross attention, 0-based; empty: all"),
    experiment("conditioner.fusion", "max", "how captions' results become one: max, mean, attention"),
    experiment("conditioner.fuse_first", False, "fuse captions before the conditioner's MLP: C times cheaper"),
    experiment("conditioner.heads", 1, "heads of the attention to words"),
    experiment("conditioner.scaled", True, "divide attention's products by sqrt(channels of a head)"),
    experiment("conditioner.pre_norm", True, "queries come from LayerNormed tokens"),
    experiment("conditioner.mlp_ratio", 1.0, "hidden width of the conditioner's MLP over the predictor's width"),
    experiment(
        "conditioner.post_norm",
        True,
        "LayerNorm after the conditioner's MLP, on all that the predictor knows; else before",
    ),
    experiment("objective.prediction", "l2_norm", "form of the prediction loss: l2_norm, smooth_l1, mse"),
    experiment("objective.sparsity", 0.1, "weight of the sparsity term, lambda"),
    experiment("objective.consistency", 0.5, "weight of the consistency term, beta"),
    experiment("objective.warmup_steps", 0, "steps over which both weights rise linearly from 0"),
    experiment("objective.regulariser", "rectified_cosine", "both act on: rectified_cosine (the paper) or entropy"),
    experiment("objective.temperature", 0.1, "of the softmax over cosines (regulariser=entropy)"),
    experiment(
        "optimizer.warmup_steps", 9_375, "steps of learning rate warm-up; the default is 15 epochs of ImageNet-1k"
    ),
    experiment("optimizer.start_learning_rate", 2e-4, "learning rate at the start of the warm-up"),
    experiment("optimizer.peak_learning_rate", 1e-3, "learning rate at the end of the warm-up"),
    experiment("optimizer.final_learning_rate", 1e-6, "learning rate at the end of the run"),
    experiment("optimizer.start_weight_decay", 0.04, "weight decay at the start of the run"),
    experiment("optimizer.final_weight_decay", 0.4, "weight decay at the end of the run, reached on a cosine"),
    experiment("optimizer.beta1", 0.9, "AdamW's decay of the first moment"),
    experiment("optimizer.beta2", 0.999, "AdamW's decay of the second moment"),
    experiment("optimizer.epsilon", 1e-8, "AdamW's epsilon"),
    experiment("target_encoder.kind", "ema", "what is predicted: ema, frozen (a teacher's features), pixels"),
    experiment(
        "target_encoder.teacher",
        "",
        "workdir of the teacher, or a folder with an encoder (kind=frozen); taken as it is at the start",
        path=True,
    ),
    experiment("target_encoder.normalise", True, "LayerNorm, without parameters, on the features to predict"),
    experiment("target_encoder.start_momentum", 0.996, "EMA momentum of the target encoder at the start"),
    experiment("target_encoder.final_momentum", 1.0, "EMA momentum at the end, reached linearly"),
    runtime("mesh.data", -1, "devices along the axis that only splits the batch; -1: all that remain"),
    runtime("mesh.fsdp", 1, "devices along the axis that splits the batch and the parameters"),
    runtime("evaluation.tasks", "knn,linear_fast,rank", "what launch.evaluate runs by default, as far as a run has it"),
    runtime(
        "evaluation.data",
        "",
        "prepared dataset to judge on, with the usual features, or scenes; empty: the run's",
        path=True,
    ),
    runtime("evaluation.test_split", "", "split that is tested on; empty: test, or val where there is none"),
    runtime("evaluation.train_examples", 4000, "examples that probes are fitted on, at most"),
    runtime("evaluation.test_examples", 2000, "examples that probes are tested on, at most"),
    runtime("evaluation.dense_examples", 1000, "images that segmentation and attentive are fitted on, at most"),
    runtime("evaluation.image_size", 0, "side in pixels of the images to judge on, squares; 0: the encoder's own"),
    runtime("evaluation.views", 0, "random crops of each train image that `linear` trains on in turn; 0: the image"),
    runtime("evaluation.batch_size", 250, "images the frozen encoder reads at once, over all devices"),
)


def get_config() -> ml_collections.ConfigDict:
    """All defaults. Locked: setting an undeclared key raises."""
    tree: dict[str, Any] = {}
    for key in KEYS:
        *groups, leaf = key.name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = key.default
    return ml_collections.ConfigDict(tree).lock()


def expand_paths(config: ml_collections.ConfigDict) -> None:
    """Expands ~ in all keys that are paths. UserError, naming the key, for what `local_path` refuses."""
    values = flatten(config)
    for key in KEYS:
        if key.path:
            paths = [local_path(path, key.name) for path in values[key.name].split(",")]
            config.update_from_flattened_dict({key.name: ",".join(paths)})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups -> {"train.seed": 0, ...}, with lists as tuples, so that JSON's reading equals the original."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def experiment_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the keys that change results and differ, or that only one side has."""
    runtime_names = {key.name for key in KEYS if not key.changes_results}
    one, other = flatten(one), flatten(other)
    names = sorted((one.keys() | other.keys()) - runtime_names)
    return [name for name in names if name not in one or name not in other or one[name] != other[name]]


def add_runtime_keys(config: ml_collections.ConfigDict) -> None:
    """Gives a configuration of before the runtime keys that it lacks, which change no result, at their defaults."""
    known = flatten(config)
    absent = {key.name: key.default for key in KEYS if not key.changes_results and key.name not in known}
    with config.unlocked():
        for name, value in absent.items():
            group, leaf = name.rsplit(".", 1)
            config[group][leaf] = value


def describe() -> str:
    """One line a key, for --help."""
    lines = (f"  {key.name}={key.default!r}{'' if key.changes_results else ' *'}: {key.meaning}" for key in KEYS)
    return "\n".join(lines) + "\n"
