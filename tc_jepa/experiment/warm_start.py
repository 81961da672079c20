"""Starting a new run from trained weights: the key train.init_from.

The encoder must fit as a whole. Every other network is taken by its name where all its arrays fit, and else starts as
in any new run; the report says which, and why. Of a JEPA's predictor the conditioner is taken apart from the rest: it
belongs to the words that it read, so it is taken together with learned word vectors, and from a run that read the same
words. Optimizer and schedules always start anew, and so does a method's extra state: a moving average starts as the
encoder that is taken.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flax import traverse_util
import ml_collections

from tc_jepa.config import data
from tc_jepa.convert.weights import EncoderWeights
from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.storage.checkpoint import chosen_step, read_config, restore_trained, trained_networks
from tc_jepa.storage.files import as_path

ENCODER, PREDICTOR, CONDITIONER, TEXT = "encoder", "predictor", "conditioner", "text"
LEARNED = "embedding"  # the value of model.text for word vectors that are trained
ABSENT = "it holds none"


class WarmStart(NamedTuple):
    """`params` are the trained parameters that are taken, nested as the run's own. `report` is for the user."""

    params: Params
    report: str


def warm_start(config: ml_collections.ConfigDict, trained: Params, reader: CaptionReader | None) -> WarmStart:
    """Returns what config.train.init_from holds for a run whose trained parameters have the shapes of `trained`.

    `reader` is what the run reads captions with; None where it reads none. Raises UserError where the encoder does not
    fit.
    """
    path = as_path(config.train.init_from)
    step = chosen_step(path, None) if pretrained.is_run(path) else None
    weights = pretrained.open_encoder(path, step, predictor=PREDICTOR in trained)
    _check_encoder(config, trained[ENCODER], weights)
    ours, theirs = _networks(trained), _networks(_stored(path, step, weights, trained))
    reasons = {name: misfit(params, theirs[name]) if name in theirs else ABSENT for name, params in ours.items()}
    if CONDITIONER in ours:
        together = [name for name in (CONDITIONER, TEXT) if name in ours]
        reasons |= dict.fromkeys(together, _why_unread(config, ours, theirs, reader, reasons))
    taken = {name: theirs[name] for name in ours if not reasons[name]}
    fresh = {name: reason for name, reason in reasons.items() if reason}
    return WarmStart(_nested(taken), _report(config, weights, taken, fresh))


def misfit(ours: Params, theirs: Params) -> str:
    """Returns the first difference in names or shapes between two trees of parameters; "" where there is none."""
    ours, theirs = (traverse_util.flatten_dict(params, sep="/") for params in (ours, theirs))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            return f"it has no {name}"
        if name not in ours:
            return f"this run has no {name}"
        if ours[name].shape != theirs[name].shape:
            return f"its {name} is {_shape(theirs[name])}, not {_shape(ours[name])}"
    return ""


def _stored(path: Path, step: int | None, weights: EncoderWeights, wanted: Mapping) -> Params:
    """Returns those of the wanted networks that a path holds. `step` is None for a folder of weights."""
    found = {ENCODER: weights.params, PREDICTOR: weights.predictor}
    if step is not None:
        others = wanted.keys() & trained_networks(path, step) - found.keys()
        found |= {name: restore_trained(path, step, name) for name in others}
    return {name: params for name, params in found.items() if name in wanted and params is not None}


def _networks(params: Params) -> Params:
    """Returns parameters by name of network, with a predictor's conditioner as a network of its own."""
    predictor = params.get(PREDICTOR, {})
    if CONDITIONER not in predictor:
        return dict(params)
    core = {name: value for name, value in predictor.items() if name != CONDITIONER}
    return {**params, PREDICTOR: core, CONDITIONER: predictor[CONDITIONER]}


def _nested(networks: Params) -> Params:
    """The inverse of _networks."""
    if CONDITIONER not in networks:
        return networks
    predictor = {**networks[PREDICTOR], CONDITIONER: networks[CONDITIONER]}
    return {name: params for name, params in networks.items() if name != CONDITIONER} | {PREDICTOR: predictor}


def _check_encoder(config: ml_collections.ConfigDict, ours: Params, weights: EncoderWeights) -> None:
    where, encoder = f"train.init_from={config.train.init_from}", weights.encoder
    if encoder.stored_positions:
        raise UserError(
            f"{where} has learned positions, and a run computes sine-cosine ones; give another encoder",
            about="train.init_from",
        )
    if encoder.patch_size != config.model.patch_size:
        raise UserError(
            f"{where} has patches of {encoder.patch_size} px; give model.patch_size={encoder.patch_size}",
            about="model.patch_size",
        )
    difference = misfit(ours, weights.params)
    if difference:
        raise UserError(
            f"{where} does not fit model.encoder={config.model.encoder} ({difference}); give its own model.encoder",
            about="model.encoder",
        )


def _why_unread(
    config: ml_collections.ConfigDict,
    ours: Params,
    theirs: Params,
    reader: CaptionReader | None,
    reasons: Mapping[str, str],
) -> str:
    """Returns why the conditioner and learned word vectors in train.init_from are not taken; "" where they are."""
    if reasons[PREDICTOR]:
        return "its predictor is not taken"
    if CONDITIONER not in theirs:
        return ABSENT
    origin = read_config(as_path(config.train.init_from))
    if (origin.model.text == LEARNED) != (config.model.text == LEARNED):
        return f"it read words of model.text={origin.model.text}"
    if config.model.text == LEARNED and data.tokenizer(origin).model != reader.model:
        return "it read another vocabulary"
    return reasons[CONDITIONER] or reasons.get(TEXT, "")


def _report(config: ml_collections.ConfigDict, weights: EncoderWeights, taken: Params, fresh: dict[str, str]) -> str:
    lines = [f"warm start from {config.train.init_from}:"]
    lines += [f"  {name}: taken, {len(traverse_util.flatten_dict(params))} arrays" for name, params in taken.items()]
    if weights.image_size != config.image.size:
        lines.append(f"  positions: of {config.image.size} px; it was trained at {weights.image_size} px")
    lines += [f"  {name}: fresh, because {reason}" for name, reason in fresh.items()]
    lines.append("  optimizer and schedules: fresh; a moving average of the encoder starts as the encoder")
    return "\n".join(lines)


def _shape(array) -> str:
    return " x ".join(map(str, array.shape))
