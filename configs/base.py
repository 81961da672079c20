"""Every configuration key, declared once: name, default, meaning with its unit, allowed values, and when it is used.

An experiment is a file beside this one whose get_config() starts from `get_config()` here and sets what differs; its
docstring is the experiment's documentation. The defaults are ViT-B/16 at 224 px as in the paper, on 100,000 steps.
"""

import functools

import ml_collections

from configs.keys import flatten, Key, Keys
from configs.uses import FUSING, USED
from tc_jepa.evaluation.tasks import TASKS
from tc_jepa.storage.files import local_path, workdir_path

METHODS = ("jepa", "lejepa", "contrastive", "supervised")
LEVELS = ("standard", "hard", "spacious")
SIZES = ("nano", "tiny", "small", "base", "large", "huge", "giant")
DTYPES = ("float32", "bfloat16")
TEXTS = ("embedding", "t5", "stored")
MASKS = ("fixed", "official", "random")
TARGETS = ("ema", "online", "frozen", "pixels")
NORMALISATIONS = ("none", "layer", "batch", "instance")
INITS = ("official", "depth_rescaled")
STEMS = ("linear", "conv")
PATCH_INITS = ("official", "fan_in")
REMATS = ("none", "blocks", "conditioner", "all")
KERNELS = ("plain", "tpu")
RATE_RULES = ("none", "sqrt", "linear")
SHRINKS = ("area", "fast")
REGULARISERS = ("rectified_cosine", "entropy")
CONTRASTS = ("clip", "siglip", "sparc")
CONDITIONERS = (*FUSING, "sequence", "none")

key = functools.partial(Key, changes_results=True)
runtime = functools.partial(Key, changes_results=False)  # may change between resumes of one run


def anti_collapse(term: str, meaning: str) -> Key:
    """The weight of a term of methods/anti_collapse.py."""
    where = "on context features before their last LayerNorm; needs whole batches"
    return key(f"objective.anti_collapse.{term}", 0.0, f"weight of {meaning}, {where}", low=0, before=0.0)


KEYS = Keys(
    key(
        "method.name",
        "jepa",
        "jepa: predict hidden patches (I-JEPA, TC-JEPA); lejepa: make views alike; contrastive: match images and "
        "captions (CLIP, SigLIP, SPARC); supervised: learn the labels of the data, as a ceiling for the others",
        choices=METHODS,
        before="jepa",
    ),
    key("train.seed", 0, "seed of initialisation, data order, crops, captions and masks", low=0, high=2**32 - 1),
    key("train.init_from", "", "workdir, converted or Hugging Face folder with first weights; empty: none", path=True),
    key("train.steps", 100_000, "length of the run in steps; every schedule spans it", low=1),
    key("train.batch_size", 2048, "images a step, over all devices and hosts", low=1),
    runtime("train.accumulate", 1, "parts of a batch that are computed in turn, to save memory", low=1, before=1),
    runtime("train.log_every", 50, "steps between two lines of metrics.jsonl", low=1),
    runtime("train.checkpoint_every", 1000, "steps between two checkpoints; the last step always has one", low=1),
    runtime("train.trace_start", 0, "first step of a profile for xprof, which goes to WORKDIR/trace; 0: none", low=0),
    runtime("train.trace_steps", 5, "steps of that profile", low=1),
    runtime("train.keep_checkpoints", 2, "newest checkpoints kept, beside the last from before a fall", low=1),
    runtime(
        "train.on_damage",
        "stop",
        "where the newest checkpoint is damaged; older: move it to checkpoints/damaged, and resume from the one before",
        choices=("stop", "older"),
        before="stop",
    ),
    runtime("train.skip_non_finite", 0, "steps whose loss is not finite that may be skipped", low=0, before=0),
    runtime("train.eval_every", 1000, "steps between evaluations on held-out images: rank, text, regularisers", low=1),
    runtime(
        "train.eval_tasks",
        "",
        "tasks to run at every train.eval_every, comma between (rank: 8 crops an image); scored on split val, without "
        "one on a fifth of train that probes are not fitted on, never on test; empty: none",
        choices=("knn", "linear_fast", "lowshot", "rank"),
        listed=True,
    ),
    runtime("train.eval_examples", 1000, "examples that train.eval_tasks are fitted on, and scored on, at most", low=1),
    key("data.path", "", "prepared datasets (launch.prepare_data), comma between; empty: scenes drawn live", path=True),
    key("data.weights", (), "exact ratio of the datasets, as (7, 3); empty: each image once", items=float, above=0),
    key("data.image_feature", "image", "feature of data.path that is the image; TFDS datasets have names of their own"),
    key(
        "data.caption_features",
        (),
        "text features of data.path, single or sequences, all candidates (captions.text: nested); empty: captions",
        items=str,
    ),
    key("data.description_features", (), "long texts in data.path; each sentence is a candidate", items=str),
    key("data.label_features", (), "labels in data.path for evaluation; empty: all that are not nested", items=str),
    runtime("data.mask_feature", "", "mask feature of data.path for evaluation; empty: mask, where it has one"),
    runtime(
        "data.bad_records",
        "stop",
        "where a record of data.path is damaged; replace: in training the next good one of its split stands in",
        choices=("stop", "replace"),
        before="stop",
    ),
    runtime("data.bad_records_share", 0.01, "share of a split that may be replaced", low=0, below=1, before=0.01),
    runtime("data.workers", 0, "processes that prepare batches; 0: threads of the main process", low=0),
    key("data.train_scenes", 1_000_000, "number of distinct training scenes", low=1),
    key("data.scenes_seed", 0, "seed of the scenes themselves, apart from train.seed", low=0),
    key(
        "data.scenes_level",
        "standard",
        "standard: 1 to 5 objects; hard: 5 to 8, which hide each other more; spacious: 1 to 4 large ones with a theme, "
        "and crops that are drawn, captioned and labelled anew",
        choices=LEVELS,
    ),
    key("image.size", 224, "side of a crop in pixels", low=1),
    key("image.crop_scale", (0.3, 1.0), "area of a random crop, as a fraction of the image's", above=0, high=1),
    key("image.crop_aspect", (3 / 4, 4 / 3), "width / height of a random crop before resizing", above=0),
    key(
        "image.shrink",
        "area",
        "how crops shrink; area: means over areas; fast: JPEGs decoded at 1/2, 1/4 or 1/8 where that covers the crop, "
        "then bilinear",
        choices=SHRINKS,
        before="area",
    ),
    key("image.flip", False, "mirror half the images; makes 'left of' in captions false"),
    key(
        "image.context_corruption",
        0.0,
        "IWM: the context encoder sees a copy changed in colour and sharpness, and the predictor reads how; factor of "
        "the colour jitter of its recipe; 0: off",
        low=0,
        high=5,
        before=0.0,
    ),
    key("captions.per_image", 8, "captions sampled from an image's candidates, at most", low=1),
    key("captions.candidates", 0, "only the first so many of an image's captions are candidates; 0: all", low=0),
    key("captions.shuffled", False, "a control: images of a batch get the captions of others, which are wrong"),
    key(
        "captions.noise",
        0.0,
        "share of the images that get another's captions, and of the words that are dropped, in training alone",
        low=0,
        high=1,
        before=0.0,
    ),
    key("captions.words", 32, "pieces a caption is padded or cut to, end of sentence included", low=1),
    key("captions.vocabulary", "", "SentencePiece model; empty: the one with the data, or the scenes' own", path=True),
    key("captions.vectors", "", "word vectors (launch.encode_captions), a folder a dataset, comma between", path=True),
    key(
        "masking.kind",
        "fixed",
        "fixed: blocks drawn for each image; official: as I-JEPA's released code draws them; random: patch by patch",
        choices=MASKS,
    ),
    key("masking.target_blocks", 4, "number of blocks to predict (random: 1)", low=1),
    key("masking.target_scale", (0.15, 0.2), "area of a target block, as a fraction of the grid", above=0, high=1),
    key("masking.target_aspect", (0.75, 1.5), "height / width of a target block", above=0),
    key("masking.context_scale", (0.85, 1.0), "the same of the context block, targets included", above=0, high=1),
    key("masking.context_aspect", (1.0, 1.0), "height / width of the context block", above=0),
    key(
        "masking.context_tokens",
        80,
        "context patches at most; a surplus is dropped at random (official: from the bottom of the image) and counted",
        low=1,
    ),
    key("masking.min_context", 10, "context patches left at least (official: more, and in target blocks too)", low=1),
    key("masking.group_size", 32, "images in a row with equal block sizes and context length (I-JEPA: a GPU's)", low=1),
    runtime(
        "masking.length_multiple",
        0,
        "arrays of context and target patches are as long as a batch needs, rounded up to a multiple of this; each "
        "length compiles a step of its own; 0: always as long as any batch could need",
        low=0,
        before=0,
    ),
    key("masking.ratio", (0.4, 0.6), "share of the patches that is hidden", above=0, high=1),
    key("model.encoder", "base", "size of the ViT", choices=SIZES),
    key("model.patch_size", 16, "side of a patch in pixels", low=1),
    key("model.predictor.width", 384, "channels of the predictor; it has as many heads as the encoder", low=1),
    key("model.predictor.depth", 6, "number of blocks of the predictor", low=1),
    key("model.conditioner", FUSING[0], "how the predictor reads captions; none is I-JEPA", choices=CONDITIONERS),
    key(
        "model.text",
        "embedding",
        "encoder of captions; embedding: trained with the rest; t5: a frozen T5; stored: captions.vectors",
        choices=TEXTS,
    ),
    key("model.text_width", 256, "channels of the learned word vectors", low=1),
    key(
        "model.text_weights",
        "",
        "Hugging Face folder of the T5 (safetensors, spiece.model); text=stored compares with it, if given",
        path=True,
    ),
    key("model.text_dtype", "float32", "type of the T5's parameters and products", choices=DTYPES),
    key("model.position_noise", 0.0, "StoP's sigma, variance of the noise in mask tokens' places; 0: off", low=0),
    key(
        "model.position_noise_levels",
        1,
        "N-JEPA: an image's variance is i / levels of model.position_noise, with i drawn from 1 to this",
        low=1,
        before=1,
    ),
    key("model.joint_targets", False, "predict all target blocks in one sequence, not each in its own"),
    key("model.dtype", "bfloat16", "type of matrix products; parameters are float32", choices=DTYPES),
    key(
        "model.residual_dtype",
        "float32",
        "type of the residual stream of encoder and predictor in training; evaluation has float32",
        choices=DTYPES,
        before="float32",
    ),
    runtime(
        "model.remat",
        "none",
        "what is computed again in the backward pass, to save memory: transformer blocks, conditioner layers, all",
        choices=REMATS,
        before="none",
    ),
    runtime(
        "model.kernels",
        "plain",
        "programs of attention and of the maximum over captions: XLA's own, or kernels for TPUs (tpu)",
        choices=KERNELS,
        before="plain",
    ),
    runtime("model.scan_blocks", False, "loop over the encoder's blocks: one is compiled instead of all", before=False),
    key("model.init_std", 0.02, "deviation of initial kernels; the official 0.02 suits widths near 1,000", above=0),
    key(
        "model.init",
        "official",
        "official: all kernels start alike; depth_rescaled: deeper residual branches start smaller",
        choices=INITS,
    ),
    key(
        "model.stem",
        "linear",
        "from pixels to tokens; linear: one layer; conv: two convolutions first, within each patch",
        choices=STEMS,
        before="linear",
    ),
    key(
        "model.patch_init",
        "official",
        "initial kernel of the linear stem; official: model.init_std; fan_in: 1 / sqrt(3 patch_size^2)",
        choices=PATCH_INITS,
        before="official",
    ),
    key("conditioner.layers", (), "predictor layers with cross attention, 0-based; empty: all", items=int, low=0),
    key("conditioner.fusion", "max", "how captions' results become one", choices=("max", "mean", "attention")),
    key("conditioner.fuse_first", False, "fuse captions before the conditioner's MLP: C times cheaper for C captions"),
    key("conditioner.heads", 1, "heads of the attention to words", low=1),
    key("conditioner.scaled", True, "divide attention's products by sqrt(channels of a head)"),
    key("conditioner.pre_norm", True, "queries come from LayerNormed tokens"),
    key("conditioner.mlp_ratio", 1.0, "hidden width of the conditioner's MLP over the predictor's width", above=0),
    key("conditioner.post_norm", True, "LayerNorm after the conditioner's MLP and residual sum; else before the MLP"),
    key("objective.prediction", "l2_norm", "form of the prediction loss", choices=("l2_norm", "smooth_l1", "mse")),
    key("objective.sparsity", 0.1, "weight of the sparsity term, lambda", low=0),
    key("objective.consistency", 0.5, "weight of the consistency term, beta", low=0),
    key("objective.warmup_steps", 0, "steps over which both weights rise linearly from 0", low=0),
    key("objective.regulariser", "rectified_cosine", "what both terms act on (default: paper)", choices=REGULARISERS),
    key("objective.temperature", 0.1, "temperature of the softmax over cosines", above=0),
    anti_collapse("participation", "tr(C^2) / tr(C)^2 of their covariance over patches"),
    anti_collapse("variance", "VICReg's variance term: a standard deviation of at least 1"),
    anti_collapse("covariance", "VICReg's covariance term"),
    anti_collapse("sigreg", "SIGReg's distance of their means over images from a Gaussian"),
    key("optimizer.warmup_steps", 9_375, "steps of learning rate warm-up; default: 15 epochs of ImageNet-1k", low=0),
    key("optimizer.start_learning_rate", 2e-4, "learning rate at the start of the warm-up", low=0),
    key("optimizer.peak_learning_rate", 1e-3, "learning rate at the end of the warm-up", above=0),
    key("optimizer.final_learning_rate", 1e-6, "learning rate at the end of the run", low=0),
    key(
        "optimizer.batch_rule",
        "none",
        "how learning rates follow train.batch_size; none: not; linear: they are given for 2,048 images, and scaled by "
        "the ratio of the batch sizes; sqrt: by its square root",
        choices=RATE_RULES,
        before="none",
    ),
    key("optimizer.start_weight_decay", 0.04, "weight decay at the start of the run", low=0),
    key("optimizer.final_weight_decay", 0.4, "weight decay at the end of the run, reached on a cosine", low=0),
    key("optimizer.beta1", 0.9, "AdamW's decay of the first moment", low=0, below=1),
    key("optimizer.beta2", 0.999, "AdamW's decay of the second moment", low=0, below=1),
    key("optimizer.epsilon", 1e-8, "AdamW's epsilon", above=0),
    key(
        "target_encoder.kind",
        "ema",
        "what to predict; ema: features of the moving average; online: of the encoder itself, with their gradient; "
        "frozen: of a teacher; pixels",
        choices=TARGETS,
    ),
    key("target_encoder.teacher", "", "workdir or encoder folder of the teacher, read once, at the start", path=True),
    key(
        "target_encoder.normalise",
        "layer",
        "over what the features to predict are standardised; layer: the channels of a patch (LayerNorm, as I-JEPA); "
        "batch: each channel over the batch's target patches; instance: each channel over an image's patches",
        choices=NORMALISATIONS,
        formerly={True: "layer", False: "none"},
    ),
    key("target_encoder.start_momentum", 0.996, "momentum of the EMA at the start", low=0, high=1),
    key("target_encoder.final_momentum", 1.0, "momentum of the EMA at the end, reached linearly", low=0, high=1),
    key("lejepa.views", 4, "augmented views of an image, cropped as image.* says", low=2),
    key("lejepa.weight", 0.02, "lambda: weight of SIGReg; the invariance term has 1 - lambda", low=0, high=1),
    key("lejepa.slices", 1024, "random directions along which SIGReg compares projections with a Gaussian", low=1),
    key("lejepa.projector.width", 2048, "hidden channels of the projector", low=1),
    key("lejepa.projector.depth", 2, "hidden layers of the projector", low=0),
    key("lejepa.projector.output", 128, "channels of a projection", low=1),
    key("lejepa.jitter_probability", 0.8, "share of the views with colour jitter", low=0, high=1),
    key("lejepa.brightness", 0.4, "colour jitter: strength s of its factor, from 1 - s to 1 + s", low=0, high=1),
    key("lejepa.contrast", 0.4, "colour jitter: strength of the factor of contrast", low=0, high=1),
    key("lejepa.saturation", 0.2, "colour jitter: strength of the factor of saturation", low=0, high=1),
    key("lejepa.hue", 0.1, "colour jitter: largest shift of the hue, as a fraction of the circle", low=0, high=0.5),
    key("lejepa.grey_probability", 0.2, "share of the views without colour", low=0, high=1),
    key("lejepa.blur_probability", 0.5, "share of the views with Gaussian blur, kernel 7 x 7", low=0, high=1),
    key("lejepa.blur_sigma", (0.1, 2.0), "standard deviation of the blur, in pixels", above=0),
    key("lejepa.solarise_probability", 0.2, "share of the views with values from 128 on inverted", low=0, high=1),
    key(
        "contrastive.loss",
        "clip",
        "clip: a softmax over the batch; siglip: a sigmoid for each pair; sparc: clip, and words matched with patches",
        choices=CONTRASTS,
    ),
    key("contrastive.width", 512, "channels of the space in which images and captions are compared", low=1),
    key("contrastive.text_width", 512, "channels of the text tower", low=1),
    key("contrastive.text_depth", 12, "blocks of the text tower", low=1),
    key("contrastive.text_heads", 8, "heads of the text tower; they divide its channels", low=1),
    key("contrastive.scale", 1 / 0.07, "factor of the cosines at the start, an inverse temperature", above=0, high=100),
    key("contrastive.bias", -10.0, "what is added to the scaled cosines at the start", low=-100, high=100),
    key("contrastive.fine_weight", 1.0, "weight of the loss of words and patches beside that of captions", low=0),
    runtime(
        "contrastive.ring",
        1,
        "parts in which a batch's captions are compared with its images, one after another; as many as devices: "
        "captions travel round a ring of them, and no device holds all",
        low=1,
    ),
    key("supervised.tasks", (), "tasks of the data whose labels are learned, as ('shape',); empty: all", items=str),
    runtime("mesh.data", -1, "devices along the axis that only splits the batch; -1: all that remain", low=-1),
    runtime("mesh.fsdp", 1, "devices that split the batch and the parameters; -1: all that remain", low=-1),
    runtime(
        "evaluation.tasks",
        "knn,linear_fast,rank",
        "tasks of launch.evaluate, comma between; those that the run cannot have are left out",
        choices=tuple(TASKS),
        listed=True,
    ),
    runtime("evaluation.data", "", "prepared dataset to evaluate on, or scenes; empty: the run's", path=True),
    runtime("evaluation.test_split", "", "split to test on; empty: test, or val where there is none"),
    runtime("evaluation.train_examples", 4000, "examples that probes are fitted on, at most", low=1),
    runtime("evaluation.test_examples", 2000, "examples that probes are tested on, at most", low=1),
    runtime("evaluation.dense_examples", 1000, "images for tasks that read every patch, at most", low=1),
    runtime("evaluation.decoder_depth", 2, "blocks of the decoder of captioning and vqa; the paper: 12", low=1),
    runtime("evaluation.decoder_width", 128, "channels of that decoder", low=1),
    runtime("evaluation.decoder_steps", 1000, "steps of 64 texts that it is trained for", low=1),
    runtime("evaluation.words", 32, "pieces to which captioning and vqa cut a text, end of sentence included", low=2),
    runtime("evaluation.vocabulary", "", "SentencePiece model of these two; empty: the one of captions", path=True),
    runtime("evaluation.image_size", 0, "side in pixels of the square images; 0: the size trained on", low=0),
    runtime("evaluation.views", 0, "crops of each train image that `linear` trains on in turn; 0: the image", low=0),
    runtime("evaluation.batch_size", 250, "images the frozen encoder reads at once, over all devices", low=1),
    used=USED,
)


WORKDIR_KEYS = ("train.init_from", "target_encoder.teacher")  # paths that may also be in a bucket


def get_config() -> ml_collections.ConfigDict:
    """All defaults. Locked: setting an undeclared key raises."""
    return KEYS.defaults()


def expand_paths(config: ml_collections.ConfigDict) -> None:
    """Expands ~ in all keys that are paths. UserError, naming the key, for what cannot be used."""
    values = flatten(config)
    for name in (declared.name for declared in KEYS if declared.path):
        expand = workdir_path if name in WORKDIR_KEYS else local_path
        paths = [expand(part, name) for part in values[name].split(",")]
        config.update_from_flattened_dict({name: ",".join(paths)})
