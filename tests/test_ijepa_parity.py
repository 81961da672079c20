"""Parity with I-JEPA's code: with its weights, our modules give its features, losses and gradients.

fixtures/ijepa_tiny contains weights of a tiny model with the official names, all different from their initial values,
and what facebookresearch/ijepa (commit 52c1ae95) computed from them in float32.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tc_jepa.convert import ijepa
from tc_jepa.methods.losses import loss_terms
from tc_jepa.methods.targets import EmaEncoder
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners import base as conditioner
from tc_jepa.models.conditioners.base import Words
from tc_jepa.models.predictor import Predictor
from tests import tiny

FOLDER = Path(__file__).parent / "fixtures" / "ijepa_tiny"
NETWORKS = ("encoder", "target_encoder", "predictor")


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def settings(expected):
    return json.loads(str(expected["config"]))


@pytest.fixture(scope="module")
def tensors():
    """Official tensors by network, with the `module.` of their training wrapper."""
    stored = load_file(FOLDER / "weights.safetensors")
    return {
        name: {key.removeprefix(f"{name}/"): value for key, value in stored.items() if key.startswith(f"{name}/")}
        for name in NETWORKS
    }


@pytest.fixture(scope="module")
def maps(settings):
    """The places of all official tensors but positions, by network."""
    width, patch_size = settings["width"], settings["patch_size"]
    size = vit.Size(width, settings["depth"], settings["num_heads"], hidden=4 * width)
    encoder = ijepa.encoder_places(size, patch_size, 64)
    predictor = ijepa.predictor_places(settings["predictor_width"], settings["predictor_depth"], width, 64)
    del encoder[ijepa.POSITIONS], predictor[ijepa.PREDICTOR_POSITIONS]
    return {"encoder": encoder, "target_encoder": encoder, "predictor": predictor}


@pytest.fixture(scope="module")
def params(tensors, maps):
    return {name: ijepa.to_ours(ijepa.without_wrapper(tensors[name]), maps[name]) for name in NETWORKS}


@pytest.fixture(scope="module")
def nets(settings):
    width, heads = settings["width"], settings["num_heads"]
    side = settings["image_size"] // settings["patch_size"]
    encoder = vit.VisionTransformer(vit.Size(width, settings["depth"], heads, hidden=4 * width), settings["patch_size"])
    predictor = Predictor(
        (side, side), settings["predictor_width"], settings["predictor_depth"], heads, width, conditioner.Conditioner()
    )
    return encoder, predictor


def predict(nets, params, expected):
    """Context features, predictions and losses of both forms, from the official images and masks."""
    encoder, predictor = nets
    context, targets = expected["context_indices"], expected["target_indices"]
    everything = [np.ones(indices.shape, bool) for indices in (context, targets)]
    no_words = Words(np.zeros((2, 1, 1, 1)), np.zeros((2, 1, 1), bool), np.zeros((2, 1), bool))
    features = encoder.apply({"params": params["encoder"]}, expected["images"], context)
    predictions, readings = predictor.apply(
        {"params": params["predictor"]}, features, context, everything[0], targets, everything[1], no_words
    )
    target = EmaEncoder(encoder, normalise="layer")
    whole = target.features(params["target_encoder"], expected["images"])
    chosen = layers.gather_tokens(whole, targets.reshape(2, -1)).reshape(predictions.shape)
    losses = {}
    for form in ("smooth_l1", "l2_norm"):
        objective = dataclasses.replace(tiny.OBJECTIVE, prediction=form)
        terms = loss_terms(predictions, chosen, everything[1], None, readings, no_words, objective)
        losses[form] = terms["prediction"]
    return features, whole, chosen, predictions, losses


def test_features_targets_predictions_and_losses_are_the_official_ones(nets, params, expected):
    features, whole, chosen, predictions, losses = predict(nets, params, expected)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(features, expected["context_features"], **close)
    np.testing.assert_allclose(whole, expected["target_normalised"], **close)
    np.testing.assert_allclose(chosen, expected["targets"], **close)
    np.testing.assert_allclose(predictions, expected["predictions"], **close)
    for form, loss in losses.items():
        np.testing.assert_allclose(loss, expected[f"{form}_loss"], rtol=1e-4)


def test_gradients_are_the_official_ones(nets, params, maps, expected):
    trained = {name: params[name] for name in ("encoder", "predictor")}
    gradients = jax.grad(lambda trained: predict(nets, params | trained, expected)[-1]["smooth_l1"])(trained)
    compared = 0
    for name, gradient in gradients.items():
        for official, ours in ijepa.to_theirs(gradient, maps[name]).items():
            stored = expected.get(f"grad/{name}/{official}")
            if stored is not None:
                assert np.linalg.norm(ours - stored) <= 1e-4 * np.linalg.norm(stored), official
                compared += 1
    assert compared == sum(key.startswith("grad/") for key in expected) > 5


def test_names_map_one_to_one_and_back(tensors, params, maps):
    for name in NETWORKS:
        back = ijepa.to_theirs(params[name], maps[name])
        official = ijepa.without_wrapper(tensors[name])
        positions = {"pos_embed", "predictor_pos_embed"}
        assert back.keys() == official.keys() - positions
        for key, value in back.items():
            np.testing.assert_array_equal(value, official[key])


def test_position_embeddings_are_the_ones_we_compute(tensors):
    for name, key in (("encoder", "pos_embed"), ("predictor", "predictor_pos_embed")):
        embedding = ijepa.without_wrapper(tensors[name])[key]
        assert ijepa.are_sincos(embedding, (8, 8))
        assert not ijepa.are_sincos(embedding[:, ::-1], (8, 8)) and not ijepa.are_sincos(embedding, (4, 16))
