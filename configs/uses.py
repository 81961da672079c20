"""When keys of configs/base.py have an effect.

Each row of USED is a condition and the keys that it is for, each by its name or its group. A key needs all the
conditions that name it, and the keys in those conditions must be used themselves.
"""

from configs.keys import empty, given, unless, when

CROSS_ATTENTION = ("word_cross_attention", "caption_cross_attention")
FUSING = (*CROSS_ATTENTION, "adaln", "feature")  # the conditioners that fuse the results of several captions
READS_CAPTIONS = when("method.name", "contrastive") | unless("model.conditioner", "none")

USED = (
    (
        when("method.name", "jepa"),
        "captions.per_image captions.shuffled captions.noise captions.vectors conditioner masking objective "
        "target_encoder model.conditioner model.predictor model.text model.position_noise model.joint_targets "
        "image.context_corruption",
    ),
    (when("method.name", "lejepa"), "lejepa"),
    (when("method.name", "contrastive"), "contrastive"),
    (when("contrastive.loss", "siglip"), "contrastive.bias contrastive.ring"),
    (when("contrastive.loss", "sparc"), "contrastive.fine_weight"),
    (when("method.name", "supervised"), "supervised"),
    (given("train.eval_tasks"), "train.eval_examples"),
    (unless("train.trace_start", 0), "train.trace_steps"),
    (given("data.path"), "image.shrink data.weights data.image_feature data.label_features data.mask_feature"),
    (given("data.path"), "data.caption_features data.description_features data.bad_records"),
    (when("data.bad_records", "replace"), "data.bad_records_share"),
    (empty("data.path"), "data.train_scenes data.scenes_seed data.scenes_level"),
    (READS_CAPTIONS, "captions data.caption_features data.description_features"),
    (unless("model.conditioner", "none"), "captions.per_image captions.shuffled captions.noise model.text"),
    (when("model.text", "embedding"), "model.text_width"),
    (when("model.text", "t5", "stored"), "model.text_weights"),
    (when("model.text", "t5"), "model.text_dtype"),
    (when("model.text", "stored"), "captions.vectors"),
    (when("method.name", "contrastive") | unless("model.text", "t5"), "captions.vocabulary"),
    (when("model.stem", "linear"), "model.patch_init"),
    (unless("model.position_noise", 0), "model.position_noise_levels"),
    (when("masking.kind", "official"), "masking.group_size"),
    (when("masking.kind", "random"), "masking.ratio"),
    (unless("masking.kind", "random"), "masking.target_scale masking.target_aspect"),
    (unless("masking.kind", "random"), "masking.context_scale masking.context_aspect"),
    (when("model.conditioner", *FUSING), "conditioner.fusion"),
    (
        when("model.conditioner", *CROSS_ATTENTION),
        "conditioner.layers conditioner.fuse_first conditioner.mlp_ratio conditioner.post_norm",
    ),
    (
        when("model.conditioner", "word_cross_attention"),
        "conditioner.heads conditioner.scaled conditioner.pre_norm objective.sparsity objective.consistency",
    ),
    (
        unless("objective.sparsity", 0) | unless("objective.consistency", 0),
        "objective.warmup_steps objective.regulariser",
    ),
    (when("objective.regulariser", "entropy"), "objective.temperature"),
    (unless("optimizer.warmup_steps", 0), "optimizer.start_learning_rate"),
    (when("target_encoder.kind", "frozen"), "target_encoder.teacher"),
    (unless("target_encoder.kind", "pixels"), "target_encoder.normalise"),
    (when("target_encoder.kind", "ema"), "target_encoder.start_momentum target_encoder.final_momentum"),
)
