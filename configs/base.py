"""Every configuration key, declared once: name, default, meaning with its unit, allowed values, and when it is used.

An experiment is a file beside this one whose get_config() starts from `get_config()` here and sets what differs; its
docstring is the experiment's documentation. The defaults are ViT-B/16 at 224 px as in the paper, on 100,000 steps.
"""

from typing import Any

import ml_collections

from configs.keys import empty, flatten, given, Key, Keys, unless, when
from tc_jepa.evaluation.tasks import TASKS
from tc_jepa.storage.files import local_path

DTYPES = ("float32", "bfloat16")
CROSS_ATTENTION = ("word_cross_attention", "caption_cross_attention")
FUSING = (*CROSS_ATTENTION, "adaln", "feature")  # the conditioners that fuse the results of several captions

# When keys have an effect: a condition and the keys that it is for, each by its name or its group. A key needs all the
# conditions that name it, and the keys in those conditions must be used themselves.
USED = (
    (
        when("method.name", "jepa"),
        ("captions", "conditioner", "masking", "objective", "target_encoder", "model.conditioner", "model.predictor")
        + ("model.text", "model.position_noise", "model.joint_targets"),
    ),
    (when("method.name", "lejepa"), ("lejepa",)),
    (given("train.eval_tasks"), ("train.eval_examples",)),
    (
        given("data.path"),
        ("data.weights", "data.image_feature", "data.label_features", "data.mask_feature")
        + ("data.caption_features", "data.description_features"),
    ),
    (empty("data.path"), ("data.train_scenes", "data.scenes_seed", "data.scenes_level")),
    (
        unless("model.conditioner", "none"),
        ("captions", "model.text", "data.caption_features", "data.description_features"),
    ),
    (when("model.text", "embedding"), ("model.text_width",)),
    (when("model.text", "t5", "stored"), ("model.text_weights",)),
    (when("model.text", "t5"), ("model.text_dtype",)),
    (when("model.text", "stored"), ("captions.vectors",)),
    (unless("model.text", "t5"), ("captions.vocabulary",)),
    (when("masking.kind", "official"), ("masking.group_size",)),
    (when("masking.kind", "random"), ("masking.ratio",)),
    (
        unless("masking.kind", "random"),
        ("masking.target_scale", "masking.target_aspect", "masking.context_scale", "masking.context_aspect"),
    ),
    (when("model.conditioner", *FUSING), ("conditioner.fusion",)),
    (
        when("model.conditioner", *CROSS_ATTENTION),
        ("conditioner.layers", "conditioner.fuse_first", "conditioner.mlp_ratio", "conditioner.post_norm"),
    ),
    (
        when("model.conditioner", "word_cross_attention"),
        ("conditioner.heads", "conditioner.scaled", "conditioner.pre_norm")
        + ("objective.sparsity", "objective.consistency"),
    ),
    (
        unless("objective.sparsity", 0) | unless("objective.consistency", 0),
        ("objective.warmup_steps", "objective.regulariser"),
    ),
    (when("objective.regulariser", "entropy"), ("objective.temperature",)),
    (unless("optimizer.warmup_steps", 0), ("optimizer.start_learning_rate",)),
    (when("target_encoder.kind", "frozen"), ("target_encoder.teacher",)),
    (unless("target_encoder.kind", "pixels"), ("target_encoder.normalise",)),
    (when("target_encoder.kind", "ema"), ("target_encoder.start_momentum", "target_encoder.final_momentum")),
)


def experiment(name: str, default: Any, meaning: str, **declared: Any) -> Key:
    """A key that changes results. `declared` are further fields of Key."""
    return Key(name=name, default=default, meaning=meaning, changes_results=True, **declared)


def runtime(name: str, default: Any, meaning: str, **declared: Any) -> Key:
    """A key that may change between resumes of one run. `declared` are further fields of Key."""
    return Key(name=name, default=default, meaning=meaning, changes_results=False, **declared)


KEYS = Keys(
    experiment(
        "method.name",
        "jepa",
        "what is learned: hidden patches from visible ones, or views of an image alike",
        choices=("jepa", "lejepa"),
        before="jepa",
    ),
    experiment("train.seed", 0, "seed of initialisation, data order, crops, captions and masks", low=0, high=2**32 - 1),
    experiment(
        "train.init_from",
        "",
        "start with the weights of a workdir, a converted or a Hugging Face folder; empty: from scratch",
        path=True,
    ),
    experiment("train.steps", 100_000, "length of the run in steps; every schedule spans it", low=1),
    experiment("train.batch_size", 2048, "images a step, over all devices and hosts", low=1),
    runtime("train.log_every", 50, "steps between two lines of metrics.jsonl", low=1),
    runtime("train.checkpoint_every", 1000, "steps between two checkpoints; the last step always has one", low=1),
    runtime("train.keep_checkpoints", 2, "number of checkpoints kept, the newest ones", low=1),
    runtime(
        "train.eval_every",
        1000,
        "steps between two evaluations on held-out images (rank, text worth, regularisers)",
        low=1,
    ),
    runtime(
        "train.eval_tasks",
        "",
        "evaluation tasks to run at every train.eval_every, separated by commas (rank: 8 crops an image); scored on "
        "split val, without one on a fifth of train that probes are not fitted on, never on test; empty: none",
        choices=("knn", "linear_fast", "lowshot", "rank"),
        listed=True,
    ),
    runtime("train.eval_examples", 1000, "examples that train.eval_tasks are fitted on, and scored on, at most", low=1),
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
        items=float,
        above=0,
    ),
    experiment(
        "data.image_feature", "image", "the feature of data.path that is the image; TFDS datasets have their own names"
    ),
    experiment(
        "data.caption_features",
        (),
        "features of data.path, texts or sequences of them, that are pooled as candidates; dots reach into nested "
        "ones (captions.text); empty: captions, where it has any",
        items=str,
    ),
    experiment(
        "data.description_features",
        (),
        "features of data.path with long texts, each sentence of which is a candidate",
        items=str,
    ),
    experiment(
        "data.label_features",
        (),
        "label features of data.path for evaluation; empty: all that are not nested",
        items=str,
    ),
    runtime("data.mask_feature", "", "mask feature of data.path for evaluation; empty: mask, where it has one"),
    runtime("data.workers", 0, "processes that prepare batches; 0: threads of the main process", low=0),
    experiment("data.train_scenes", 1_000_000, "number of distinct training scenes", low=1),
    experiment("data.scenes_seed", 0, "seed of the scenes themselves, apart from train.seed", low=0),
    experiment(
        "data.scenes_level",
        "standard",
        "standard: 1 to 5 objects; hard: 5 to 8, which hide each other more",
        choices=("standard", "hard"),
    ),
    experiment("image.size", 224, "side of a crop in pixels", low=1),
    experiment(
        "image.crop_scale", (0.3, 1.0), "area of a random crop, as a fraction of the image", pair=True, above=0, high=1
    ),
    experiment(
        "image.crop_aspect", (3 / 4, 4 / 3), "width / height of a random crop before it is resized", pair=True, above=0
    ),
    experiment("image.flip", False, "mirror half the images; makes 'left of' in captions false"),
    experiment("captions.per_image", 8, "captions sampled from an image's candidates, at most", low=1),
    experiment("captions.candidates", 0, "only the first so many of an image's captions are candidates; 0: all", low=0),
    experiment(
        "captions.shuffled", False, "a control: images of a batch get each other's captions, which do not describe them"
    ),
    experiment("captions.words", 32, "pieces a caption is padded or cut to, end of sentence included", low=1),
    experiment(
        "captions.vocabulary",
        "",
        "SentencePiece model; empty: the one stored with the data, or the scenes' own",
        path=True,
    ),
    experiment(
        "captions.vectors",
        "",
        "folder of word vectors (launch.encode_captions); for several datasets one each, separated by commas",
        path=True,
    ),
    experiment(
        "masking.kind",
        "fixed",
        "fixed: blocks drawn for each image, over the whole grid; official: as I-JEPA's released code draws them; "
        "random: patch by patch",
        choices=("fixed", "official", "random"),
    ),
    experiment("masking.target_blocks", 4, "number of blocks to predict (random: 1)", low=1),
    experiment(
        "masking.target_scale",
        (0.15, 0.2),
        "area of a target block, as a fraction of the grid",
        pair=True,
        above=0,
        high=1,
    ),
    experiment("masking.target_aspect", (0.75, 1.5), "height / width of a target block", pair=True, above=0),
    experiment(
        "masking.context_scale",
        (0.85, 1.0),
        "area of the context block before targets are cut out of it, as a fraction of the grid",
        pair=True,
        above=0,
        high=1,
    ),
    experiment("masking.context_aspect", (1.0, 1.0), "height / width of the context block", pair=True, above=0),
    experiment(
        "masking.context_tokens",
        80,
        "context patches kept at most; a surplus is dropped uniformly at random (official: from the bottom of the "
        "image) and counted as context_dropped",
        low=1,
    ),
    experiment(
        "masking.min_context", 10, "context patches left at least (official: more, and in target blocks too)", low=1
    ),
    experiment(
        "masking.group_size",
        32,
        "consecutive images that share block sizes and the length of the shortest context, as a GPU's batch does in "
        "I-JEPA's released code",
        low=1,
    ),
    experiment("masking.ratio", (0.4, 0.6), "share of the patches that is hidden", pair=True, above=0, high=1),
    experiment(
        "model.encoder", "base", "size of the ViT", choices=("nano", "tiny", "small", "base", "large", "huge", "giant")
    ),
    experiment("model.patch_size", 16, "side of a patch in pixels", low=1),
    experiment("model.predictor.width", 384, "channels of the predictor; it has as many heads as the encoder", low=1),
    experiment("model.predictor.depth", 6, "number of blocks of the predictor", low=1),
    experiment(
        "model.conditioner",
        "word_cross_attention",
        "how the predictor reads captions; none is I-JEPA",
        choices=(*FUSING, "sequence", "none"),
    ),
    experiment(
        "model.text",
        "embedding",
        "text encoder; embedding: word vectors learned along; t5: a frozen T5; stored: captions.vectors",
        choices=("embedding", "t5", "stored"),
    ),
    experiment("model.text_width", 256, "channels of the learned word vectors", low=1),
    experiment(
        "model.text_weights",
        "",
        "Hugging Face folder of the T5: safetensors and spiece.model; text=stored compares with it, if given",
        path=True,
    ),
    experiment("model.text_dtype", "float32", "type of the T5's parameters and products", choices=DTYPES),
    experiment(
        "model.position_noise", 0.0, "StoP's sigma, variance of the noise in mask tokens' places; 0: off", low=0
    ),
    experiment("model.joint_targets", False, "predict all target blocks in one sequence, not each in its own"),
    experiment("model.dtype", "bfloat16", "type of matrix products; parameters are float32", choices=DTYPES),
    experiment(
        "model.init_std",
        0.02,
        "deviation of initial kernels; 0.02 is the official one, for widths around 1,000",
        above=0,
    ),
    experiment(
        "model.init",
        "official",
        "official: all kernels begin alike; depth_rescaled: deeper residual branches smaller",
        choices=("official", "depth_rescaled"),
    ),
    experiment(
        "conditioner.layers", (), "predictor layers with cross attention, 0-based; empty: all", items=int, low=0
    ),
    experiment("conditioner.fusion", "max", "how captions' results become one", choices=("max", "mean", "attention")),
    experiment(
        "conditioner.fuse_first", False, "fuse captions before the conditioner's MLP: C times cheaper for C captions"
    ),
    experiment("conditioner.heads", 1, "heads of the attention to words", low=1),
    experiment("conditioner.scaled", True, "divide attention's products by sqrt(channels of a head)"),
    experiment("conditioner.pre_norm", True, "queries come from LayerNormed tokens"),
    experiment(
        "conditioner.mlp_ratio", 1.0, "hidden width of the conditioner's MLP over the predictor's width", above=0
    ),
    experiment(
        "conditioner.post_norm", True, "LayerNorm after the conditioner's MLP and the residual sum; else before the MLP"
    ),
    experiment(
        "objective.prediction", "l2_norm", "form of the prediction loss", choices=("l2_norm", "smooth_l1", "mse")
    ),
    experiment("objective.sparsity", 0.1, "weight of the sparsity term, lambda", low=0),
    experiment("objective.consistency", 0.5, "weight of the consistency term, beta", low=0),
    experiment("objective.warmup_steps", 0, "steps over which both weights rise linearly from 0", low=0),
    experiment(
        "objective.regulariser",
        "rectified_cosine",
        "what both terms act on: rectified_cosine (the paper) or entropy",
        choices=("rectified_cosine", "entropy"),
    ),
    experiment("objective.temperature", 0.1, "temperature of the softmax over cosines", above=0),
    experiment(
        "optimizer.warmup_steps",
        9_375,
        "steps of learning rate warm-up; the default is 15 epochs of ImageNet-1k",
        low=0,
    ),
    experiment("optimizer.start_learning_rate", 2e-4, "learning rate at the start of the warm-up", low=0),
    experiment("optimizer.peak_learning_rate", 1e-3, "learning rate at the end of the warm-up", above=0),
    experiment("optimizer.final_learning_rate", 1e-6, "learning rate at the end of the run", low=0),
    experiment("optimizer.start_weight_decay", 0.04, "weight decay at the start of the run", low=0),
    experiment("optimizer.final_weight_decay", 0.4, "weight decay at the end of the run, reached on a cosine", low=0),
    experiment("optimizer.beta1", 0.9, "AdamW's decay of the first moment", low=0, below=1),
    experiment("optimizer.beta2", 0.999, "AdamW's decay of the second moment", low=0, below=1),
    experiment("optimizer.epsilon", 1e-8, "AdamW's epsilon", above=0),
    experiment(
        "target_encoder.kind",
        "ema",
        "what is predicted; ema: features of the encoder's moving average; frozen: a teacher's features; pixels: "
        "the hidden patches themselves",
        choices=("ema", "frozen", "pixels"),
    ),
    experiment(
        "target_encoder.teacher",
        "",
        "workdir of the teacher, or a folder with an encoder; its weights are read once, at the start",
        path=True,
    ),
    experiment("target_encoder.normalise", True, "LayerNorm, without parameters, on the features to predict"),
    experiment(
        "target_encoder.start_momentum", 0.996, "EMA momentum of the target encoder at the start", low=0, high=1
    ),
    experiment("target_encoder.final_momentum", 1.0, "EMA momentum at the end, reached linearly", low=0, high=1),
    experiment("lejepa.views", 4, "augmented views of an image, cropped as image.* says", low=2),
    experiment("lejepa.weight", 0.02, "lambda: weight of SIGReg; the invariance term has 1 - lambda", low=0, high=1),
    experiment(
        "lejepa.slices", 1024, "random directions along which SIGReg compares projections with a Gaussian", low=1
    ),
    experiment("lejepa.projector.width", 2048, "hidden channels of the projector", low=1),
    experiment("lejepa.projector.depth", 2, "hidden layers of the projector", low=0),
    experiment("lejepa.projector.output", 128, "channels of a projection", low=1),
    experiment("lejepa.jitter_probability", 0.8, "share of the views with colour jitter", low=0, high=1),
    experiment(
        "lejepa.brightness", 0.4, "colour jitter: strength s of the factor, drawn from 1 - s to 1 + s", low=0, high=1
    ),
    experiment("lejepa.contrast", 0.4, "colour jitter: strength of the factor of contrast", low=0, high=1),
    experiment("lejepa.saturation", 0.2, "colour jitter: strength of the factor of saturation", low=0, high=1),
    experiment(
        "lejepa.hue", 0.1, "colour jitter: largest shift of the hue, as a fraction of the circle", low=0, high=0.5
    ),
    experiment("lejepa.grey_probability", 0.2, "share of the views without colour", low=0, high=1),
    experiment("lejepa.blur_probability", 0.5, "share of the views with Gaussian blur, kernel 7 x 7", low=0, high=1),
    experiment("lejepa.blur_sigma", (0.1, 2.0), "standard deviation of the blur, in pixels", pair=True, above=0),
    experiment(
        "lejepa.solarise_probability", 0.2, "share of the views with values from 128 on inverted", low=0, high=1
    ),
    runtime("mesh.data", -1, "devices along the axis that only splits the batch; -1: all that remain", low=-1),
    runtime(
        "mesh.fsdp", 1, "devices along the axis that splits the batch and the parameters; -1: all that remain", low=-1
    ),
    runtime(
        "evaluation.tasks",
        "knn,linear_fast,rank",
        "tasks of launch.evaluate by default, separated by commas; those that the run cannot have are left out",
        choices=tuple(TASKS),
        listed=True,
    ),
    runtime(
        "evaluation.data",
        "",
        "prepared dataset to evaluate on, with the usual features, or scenes; empty: the run's",
        path=True,
    ),
    runtime("evaluation.test_split", "", "split to test on; empty: test, or val where there is none"),
    runtime("evaluation.train_examples", 4000, "examples that probes are fitted on, at most", low=1),
    runtime("evaluation.test_examples", 2000, "examples that probes are tested on, at most", low=1),
    runtime("evaluation.dense_examples", 1000, "images that segmentation and attentive are fitted on, at most", low=1),
    runtime(
        "evaluation.image_size", 0, "side in pixels of the square images to evaluate on; 0: the size trained on", low=0
    ),
    runtime(
        "evaluation.views", 0, "random crops of each train image that `linear` trains on in turn; 0: the image", low=0
    ),
    runtime("evaluation.batch_size", 250, "images the frozen encoder reads at once, over all devices", low=1),
    used=USED,
)


def get_config() -> ml_collections.ConfigDict:
    """All defaults. Locked: setting an undeclared key raises."""
    return KEYS.defaults()


def expand_paths(config: ml_collections.ConfigDict) -> None:
    """Expands ~ in all keys that are paths. UserError, naming the key, for what `local_path` refuses."""
    values = flatten(config)
    for key in KEYS:
        if key.path:
            paths = [local_path(part, key.name) for part in values[key.name].split(",")]
            config.update_from_flattened_dict({key.name: ",".join(paths)})
