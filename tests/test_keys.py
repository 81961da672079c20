"""Configuration keys: what is declared, what is refused, and what runs older than a key are taken to have had."""

import json

import ml_collections
import pytest

from configs import base, paper, scenes_standard
from configs.keys import flatten, given, Key, Keys, unless, when
from launch import common
from tc_jepa import optimizer
from tc_jepa.config import data as config_data
from tc_jepa.config import jepa, models
from tc_jepa.config.methods import METHODS
from tc_jepa.data import bad_records
from tc_jepa.data.scenes.source import LEVELS
from tc_jepa.errors import UserError
from tc_jepa.evaluation import tasks
from tc_jepa.experiment import resume
from tc_jepa.methods import contrastive, losses, targets
from tc_jepa.models import stem, vit
from tc_jepa.models.conditioners.fusion import FUSIONS
from tc_jepa.models.kernels.backend import BACKENDS

NAMES = [key.name for key in base.KEYS]
CHANGED = {str: "x", bool: True, int: 3, float: 0.5}


def other_value(key: Key):
    """An allowed value, not the default where there are others."""
    if key.choices:
        return next((choice for choice in key.choices if choice != key.default), key.default)
    if key.pair:
        return (0.5, 0.6)
    if isinstance(key.default, tuple):
        return (CHANGED[key.items],)
    if isinstance(key.default, bool):
        return not key.default
    return CHANGED[type(key.default)] if CHANGED[type(key.default)] != key.default else 0.25


def configured(**settings):
    config = base.get_config()
    config.update_from_flattened_dict(settings)
    return config


def refused(config, *set_by_user) -> UserError:
    with pytest.raises(UserError) as error:
        base.KEYS.check(config, *set_by_user)
    assert "\n" not in str(error.value)
    return error.value


def test_keys_are_declared_once_and_explained():
    assert set(flatten(base.get_config())) == set(NAMES)
    assert all(key.meaning for key in base.KEYS)
    with pytest.raises(ValueError, match="twice"):
        Keys(base.runtime("a.b", 1, "m"), base.runtime("a.b", 2, "m"))
    with pytest.raises(ValueError, match="a.c"):
        Keys(base.runtime("a.b", 1, "m"), used=[(when("a.b", 1), "a.c")])


def test_defaults_pass_and_say_when_each_key_is_used():
    base.KEYS.check(base.get_config(), NAMES)
    for key in base.KEYS:
        for condition in key.used:
            for name in condition.names:
                assert name in NAMES and name in condition.words


def test_choices_are_those_of_the_code():
    choices = {key.name: key.choices for key in base.KEYS if key.choices}
    tables = {
        "method.name": METHODS,
        "data.scenes_level": LEVELS,
        "data.bad_records": bad_records.BAD_RECORDS,
        "image.shrink": config_data.SHRINKS,
        "masking.kind": jepa.MASKS,
        "model.encoder": vit.SIZES,
        "model.conditioner": models.CONDITIONERS,
        "model.text": models.TEXT_ENCODERS,
        "model.text_dtype": models.DTYPES,
        "model.dtype": models.DTYPES,
        "model.init": models.INITS,
        "model.remat": models.REMATS,
        "model.kernels": BACKENDS,
        "model.residual_dtype": models.DTYPES,
        "model.stem": stem.STEMS,
        "model.patch_init": models.PATCH_INITS,
        "conditioner.fusion": FUSIONS,
        "contrastive.loss": contrastive.KINDS,
        "objective.prediction": losses.PREDICTION_FORMS,
        "objective.regulariser": losses.REGULARISER_FORMS,
        "optimizer.batch_rule": optimizer.EXPONENTS,
        "target_encoder.kind": jepa.TARGETS,
        "target_encoder.normalise": targets.NORMALISATIONS,
        "evaluation.tasks": tasks.TASKS,
        "train.on_damage": resume.ON_DAMAGE,
    }
    assert set(choices.pop("train.eval_tasks")) == {task.name for task in tasks.load_all() if task.during_training}
    assert {name: set(found) for name, found in choices.items()} == {name: set(x) for name, x in tables.items()}


def beyond(key: Key) -> list:
    """Values of the right type that a key does not allow."""
    if key.choices:
        return ["no such choice"] + [f"{key.choices[0]},no such choice"] * key.listed
    values = [bound - 1 for bound in (key.low,) if bound is not None] + [key.above] * (key.above is not None)
    values += [bound + 1 for bound in (key.high,) if bound is not None] + [key.below] * (key.below is not None)
    if (key.items or type(key.default)) is float or key.pair:
        values += [float("nan"), float("inf")]
    if key.pair:
        return [(value, value) for value in values] + [(0.6, 0.5), (0.5,), ()]
    return [(value,) for value in values] if isinstance(key.default, tuple) else values


@pytest.mark.parametrize("key", list(base.KEYS), ids=lambda key: key.name)
def test_a_value_out_of_range_or_of_another_type_is_refused(key):
    values = flatten(base.get_config())
    numeric = key.items in (int, float) or key.pair or type(key.default) in (int, float)
    bounds = [bound for bound in (key.low, key.high, key.above, key.below) if bound is not None]
    assert bool(bounds) == numeric, "numbers need bounds"
    wrong_types = [None, ("a", 1)] + (["x", True] if numeric else [7]) + [1.5] * (type(key.default) is int)
    for value in beyond(key) + wrong_types:
        assert refused(values | {key.name: value}).about == key.name
    key.check(other_value(key))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.peak_learning_rate", -1e-3),
        ("optimizer.start_learning_rate", -1e-3),
        ("optimizer.final_weight_decay", -0.1),
        ("optimizer.beta1", 2.0),
        ("optimizer.beta2", 1.0),
        ("optimizer.epsilon", 0.0),
        ("target_encoder.final_momentum", 1.5),
        ("train.seed", 2**32),
        ("masking.target_scale", (0.5, 1.5)),
        ("mesh.fsdp", -2),
    ],
)
def test_values_that_training_could_not_survive_are_refused(name, value):
    assert refused(configured(**{name: value})).about == name


SIGLIP = {"method.name": "contrastive", "contrastive.loss": "siglip"}
# Settings beside which each key is used that is not used by default; keys that are used by default: beside which not.
USED_BESIDE = {
    "train.eval_examples": {"train.eval_tasks": "knn"},
    "data.weights": {"data.path": "a,b"},
    "data.image_feature": {"data.path": "a"},
    "data.label_features": {"data.path": "a"},
    "data.mask_feature": {"data.path": "a"},
    "data.caption_features": {"data.path": "a"},
    "data.description_features": {"data.path": "a"},
    "model.text_weights": {"model.text": "t5"},
    "model.text_dtype": {"model.text": "t5"},
    "captions.vectors": {"model.text": "stored"},
    "masking.group_size": {"masking.kind": "official"},
    "image.shrink": {"data.path": "a"},
    "data.bad_records": {"data.path": "a"},
    "data.bad_records_share": {"data.path": "a", "data.bad_records": "replace"},
    "train.trace_steps": {"train.trace_start": 3},
    "model.position_noise_levels": {"model.position_noise": 0.25},
    "masking.ratio": {"masking.kind": "random"},
    "objective.temperature": {"objective.regulariser": "entropy"},
    "target_encoder.teacher": {"target_encoder.kind": "frozen"},
    "contrastive.bias": SIGLIP,
    "contrastive.ring": SIGLIP,
    "contrastive.fine_weight": {"method.name": "contrastive", "contrastive.loss": "sparc"},
}
NO_WORDS, SEQUENCE, RANDOM = (
    {"model.conditioner": "none"},
    {"model.conditioner": "sequence"},
    {"masking.kind": "random"},
)
UNREGULARISED = {"objective.sparsity": 0.0, "objective.consistency": 0.0}
UNUSED_BESIDE = {
    "data.train_scenes": {"data.path": "a"},
    "data.scenes_seed": {"data.path": "a"},
    "data.scenes_level": {"data.path": "a"},
    "captions.per_image": NO_WORDS,
    "captions.candidates": NO_WORDS,
    "captions.shuffled": NO_WORDS,
    "captions.noise": NO_WORDS,
    "captions.words": NO_WORDS,
    "captions.vocabulary": {"model.text": "t5"},
    "masking.target_scale": RANDOM,
    "masking.target_aspect": RANDOM,
    "masking.context_scale": RANDOM,
    "masking.context_aspect": RANDOM,
    "model.patch_init": {"model.stem": "conv"},
    "model.text": NO_WORDS,
    "model.text_width": {"model.text": "stored"},
    "conditioner.layers": SEQUENCE,
    "conditioner.fusion": SEQUENCE,
    "conditioner.fuse_first": {"model.conditioner": "adaln"},
    "conditioner.heads": {"model.conditioner": "feature"},
    "conditioner.scaled": SEQUENCE,
    "conditioner.pre_norm": SEQUENCE,
    "conditioner.mlp_ratio": SEQUENCE,
    "conditioner.post_norm": SEQUENCE,
    "objective.sparsity": {"model.conditioner": "adaln"},
    "objective.consistency": NO_WORDS,
    "objective.warmup_steps": UNREGULARISED,
    "objective.regulariser": UNREGULARISED,
    "optimizer.start_learning_rate": {"optimizer.warmup_steps": 0},
    "target_encoder.normalise": {"target_encoder.kind": "pixels"},
    "target_encoder.start_momentum": {"target_encoder.kind": "frozen"},
    "target_encoder.final_momentum": {"target_encoder.kind": "pixels"},
}
METHODS_ALONE = {when("method.name", name).words for name in METHODS}  # for all keys of a method


def test_every_condition_is_tried():
    conditional = {key.name for key in base.KEYS if [c for c in key.used if c.words not in METHODS_ALONE]}
    assert conditional == USED_BESIDE.keys() | UNUSED_BESIDE.keys()


@pytest.mark.parametrize("name", sorted(USED_BESIDE.keys() | UNUSED_BESIDE.keys()))
def test_a_key_without_effect_is_refused_and_with_effect_accepted(name):
    value = other_value(base.KEYS.named(name))
    used, unused = USED_BESIDE.get(name, {}), UNUSED_BESIDE.get(name, {})
    base.KEYS.check(configured(**used | {name: value}), {name, *used})
    assert refused(configured(**unused | {name: value}), {name, *unused}).about == name
    base.KEYS.check(configured(**unused | {name: base.KEYS.named(name).default}), {name, *unused})


def test_a_key_whose_condition_is_unused_itself_is_unused():
    config = configured(
        **{"objective.regulariser": "entropy", "objective.temperature": 1.0, "model.conditioner": "none"}
    )
    error = refused(config, {"objective.temperature"})
    assert error.about == "objective.regulariser" or error.about == "objective.temperature"
    assert "model.conditioner='none'" in str(error)
    base.KEYS.check(config, {"model.conditioner"})


def test_what_the_user_switches_off_may_stay_in_the_file_but_not_be_set():
    config = scenes_standard.get_config()
    config.model.conditioner = "none"
    base.KEYS.check(config, {"model.conditioner", "train.seed"})
    assert refused(config, {"train.seed"}).about == "captions.per_image"
    assert refused(config, {"model.conditioner", "objective.warmup_steps"}).about == "objective.warmup_steps"


def test_of_several_layers_each_may_switch_off_what_lower_ones_set():
    settings, variant = {"model.text": "stored", "objective.warmup_steps": 5}, {"model.conditioner": "none"}
    config = scenes_standard.get_config()
    config.update_from_flattened_dict(settings)
    base.KEYS.check(config, settings)  # model.text_width stands in the file
    config.update_from_flattened_dict(variant)
    base.KEYS.check(config, settings, variant)
    assert refused(config, variant, settings).about == "model.text"
    assert refused(config, settings | variant).about == "model.text"


def test_unknown_and_missing_keys_are_refused():
    values = flatten(base.get_config())
    error = refused(values | {"train.stpes": 3})
    assert error.about == "train.stpes" and "train.steps" in str(error)
    del values["image.flip"]
    assert refused(values).about == "image.flip"


TWO_METHODS = Keys(
    base.key("method.name", "jepa", "m", choices=("jepa", "lejepa"), before="jepa"),
    base.key("masking.kind", "fixed", "m", choices=("fixed", "random")),
    base.key("masking.ratio", 0.5, "m"),
    base.key("lejepa.views", 8, "m"),
    base.key("lejepa.weight", 0.1, "m", before=0.2),
    base.runtime("train.log_every", 50, "m"),
    used=[
        (when("method.name", "jepa"), "masking"),
        (when("method.name", "lejepa"), "lejepa"),
        (when("masking.kind", "random"), "masking.ratio"),
    ],
)


def test_a_group_belongs_to_a_method():
    with pytest.raises(UserError) as error:
        TWO_METHODS.check(flatten(TWO_METHODS.defaults()) | {"lejepa.views": 4})
    assert error.value.about == "lejepa.views"
    lejepa = {"method.name": "lejepa", "lejepa.views": 4}
    TWO_METHODS.check(flatten(TWO_METHODS.defaults()) | lejepa)
    with pytest.raises(UserError) as error:
        TWO_METHODS.check(flatten(TWO_METHODS.defaults()) | lejepa | {"masking.kind": "random"}, {"masking.kind"})
    assert error.value.about == "masking.kind"
    TWO_METHODS.check(flatten(TWO_METHODS.defaults()) | lejepa | {"masking.ratio": 0.2}, {"method.name"})


def test_a_run_older_than_a_key_has_the_value_from_before_it():
    config = TWO_METHODS.defaults().unlock()
    del config["method"], config["lejepa"], config["train"]
    assert TWO_METHODS.differences(config, TWO_METHODS.defaults()) == []
    assert TWO_METHODS.complete(config) == []
    # What it had before; the default where the key is unused or changes no results.
    assert (config.method.name, config.lejepa.weight, config.lejepa.views) == ("jepa", 0.2, 8)
    del config["masking"]
    assert TWO_METHODS.complete(config) == ["masking.kind"]


def test_a_value_that_older_versions_wrote_in_another_way_is_todays():
    keys = Keys(base.key("a.b", "layer", "m", choices=("layer", "none"), formerly={True: "layer", False: "none"}))
    old, now = ml_collections.ConfigDict({"a": {"b": False}}), keys.defaults()
    assert keys.differences(old, now) == ["a.b"] and keys.differences({"a": {"b": True}}, now) == []
    assert keys.complete(old) == [] and old.a.b == "none" and keys.differences(old, now) == ["a.b"]
    assert keys.complete(now) == [] and now.a.b == "layer"


def test_experiment_keys_tell_runs_apart_where_they_have_an_effect():
    one, other = base.get_config(), base.get_config()
    other.data.workers, other.mesh.fsdp, other.train.log_every, other.masking.ratio = 3, 2, 7, (0.1, 0.2)
    assert base.KEYS.differences(one, other) == []
    other.train.seed = 1
    with other.unlocked():
        del other.image["flip"]
    assert base.KEYS.differences(one, other) == ["image.flip", "train.seed"]
    other.masking.kind = "random"
    assert base.KEYS.differences(one, other) == ["image.flip", "masking.kind", "masking.ratio", "train.seed"]


def test_a_workdir_from_before_methods_resumes_and_another_length_names_the_way(tmp_path):
    old = base.get_config().to_dict()
    del old["method"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = base.get_config()
    common.check_workdir(tmp_path, config)
    assert common.run_config(tmp_path).method.name == "jepa"
    config.train.steps = 5
    with pytest.raises(UserError, match="train.init_from") as error:
        common.check_workdir(tmp_path, config)
    assert error.value.about == "train.steps"


def test_conditions_read_as_words():
    condition = unless("a.b", 0) | given("a.c")
    assert condition.words == "a.b is not 0 or a.c is given" and condition.names == ("a.b", "a.c")


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="tc_jepa_in1k_b16") as error:
        paper.get_config("tc_jepa_in1k_b15")
    assert error.value.about == "config"
