"""A new run that begins with weights which exist already: train.init_from.

The encoder must fit whole. I-JEPA's part of the predictor is taken where all of it fits; the conditioner, with word
vectors that are learned, from a run that read the same words. What is not taken begins as in any new run, and is told.
So do optimizer and schedules; the target begins as the encoder.
"""

from typing import NamedTuple

from flax import traverse_util
import ml_collections

from tc_jepa.config import data
from tc_jepa.convert.weights import EncoderWeights
from tc_jepa.data.captions.tokenizer import CaptionReader
from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.pretrained import encoder as pretrained
from tc_jepa.storage.checkpoint import read_config, restore_trained

CONDITIONER = "conditioner"  # a predictor's parameters that I-JEPA's has not
HOLDS_NONE = "it holds none"
LEARNED = "embedding"  # of model.text: words that are trained along


class WarmStart(NamedTuple):
    """`params`: those of the run's trained parameters that are taken, nested as they are. `report`: for the user."""

    params: Params
    report: str


def warm_start(config: ml_collections.ConfigDict, trained: Params, reader: CaptionReader | None) -> WarmStart:
    """What config.train.init_from gives to a run with trained parameters of the shapes of `trained`.

    `reader` is what the run reads captions with, if it reads any. UserError where the encoder does not fit.
    """
    path = config.train.init_from
    weights = pretrained.open_encoder(path, predictor=True)
    _check_encoder(config, trained["encoder"], weights)
    taken, fresh = {"encoder": weights.params}, {}

    ours, theirs = trained["predictor"], weights.predictor
    reason = misfit(_core(ours), _core(theirs)) if theirs else HOLDS_NONE
    if reason:
        fresh["predictor"] = reason
    else:
        taken["predictor"] = _core(theirs)
    if CONDITIONER in ours:
        learned = {"text": trained["text"]} if "text" in trained else {}
        reason = "its predictor is not taken" if reason else _why_unread(config, ours, theirs, reader)
        words = {"text": restore_trained(path, None, "text")} if learned and not reason else {}
        reason = reason or misfit(learned, words)
        if reason:
            fresh |= {name: reason for name in (CONDITIONER, *learned)}
        else:
            taken |= words | {"predictor": theirs}
    return WarmStart(taken, _report(config, weights, taken, fresh))


def misfit(ours: Params, theirs: Params) -> str:
    """The first difference between two trees of parameters in names or shapes; empty where there is none."""
    ours, theirs = (traverse_util.flatten_dict(params, sep="/") for params in (ours, theirs))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            return f"it has no {name}"
        if name not in ours:
            return f"its {name} has no place"
        if ours[name].shape != theirs[name].shape:
            return f"its {name} is {_shape(theirs[name])}, not {_shape(ours[name])}"
    return ""


def _check_encoder(config: ml_collections.ConfigDict, ours: Params, weights: EncoderWeights) -> None:
    where, encoder = f"train.init_from={config.train.init_from}", weights.encoder
    if encoder.stored_positions:
        raise UserError(f"{where} has learned positions, runs have sine-cosine ones; give another encoder")
    if encoder.patch_size != config.model.patch_size:
        raise UserError(f"{where} has patches of {encoder.patch_size} px; give model.patch_size={encoder.patch_size}")
    odd = misfit(ours, weights.params)
    if odd:
        raise UserError(f"{where} is no model.encoder={config.model.encoder}: {odd}; give the model.encoder that it is")


def _why_unread(config: ml_collections.ConfigDict, ours: Params, theirs: Params, reader: CaptionReader | None) -> str:
    """Why the conditioner of the run in train.init_from does not read this run's words; empty where it does."""
    path = config.train.init_from
    if CONDITIONER not in theirs:
        return HOLDS_NONE
    origin = read_config(path)
    learned = {one.model.text == LEARNED for one in (origin, config)}
    if len(learned) > 1:
        return f"it read words of model.text={origin.model.text}"
    if config.model.text == LEARNED and data.tokenizer(origin).model != reader.model:
        return "it read another vocabulary"
    return misfit(ours[CONDITIONER], theirs[CONDITIONER])


def _core(predictor: Params) -> Params:
    return {name: params for name, params in predictor.items() if name != CONDITIONER}


def _report(config: ml_collections.ConfigDict, weights: EncoderWeights, taken: Params, fresh: dict[str, str]) -> str:
    lines = [f"warm start from {config.train.init_from}:"]
    for name, params in taken.items():
        count = len(traverse_util.flatten_dict(params))
        lines.append(f"  {name}: taken, {count} arrays")
    if weights.image_size != config.image.size:
        lines.append(f"  positions: of {config.image.size} px; it was trained at {weights.image_size} px")
    lines += [f"  {name}: fresh, because {reason}" for name, reason in fresh.items()]
    lines.append("  target: begins as the encoder; optimizer and schedules: fresh")
    return "\n".join(lines)


def _shape(array) -> str:
    return " x ".join(map(str, array.shape))
