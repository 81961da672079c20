"""What an evaluation takes: extracting pooled features of images in memory, and fitting linear heads."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from tc_jepa.benchmark.figures import Figure, Figures, in_turn, Options, per_second
from tc_jepa.config import models
from tc_jepa.data.sources import Example
from tc_jepa.distributed import sharding
from tc_jepa.evaluation.encoder import frozen_vit
from tc_jepa.evaluation.features import FeatureStore, Part
from tc_jepa.evaluation.scores import Truth
from tc_jepa.evaluation.tasks import linear
from tc_jepa.methods.method import init_encoder
from tc_jepa.models import layers

BANK = "bank"


def measure(config: ml_collections.ConfigDict, options: Options) -> Figures:
    """Returns the rates of the forward pass and of extraction, and the seconds of the bank of heads and of one head.

    The encoder of `config` has random weights. Images and features are random, too.
    """
    seconds = in_turn(extraction(config, options), options.repeats)
    found = {f"eval/{name}": per_second(one, options.images, "images/s") for name, one in seconds.items()}
    share = 100 * seconds["forward"].value / seconds["extraction"].value
    found["eval/share"] = Figure(share, "% of the bare forward rate")
    seconds = in_turn(heads(config, options), options.repeats)
    for name, one in seconds.items():
        found[f"eval/{name}"] = one
        if name != BANK:
            found[f"eval/{BANK}_over_{name}"] = Figure(seconds[BANK].value / one.value, "times as long")
    return found


def extraction(config: ml_collections.ConfigDict, options: Options) -> dict[str, Callable[[], Any]]:
    """The forward pass alone, and the extraction of pooled features, as functions."""
    side, size = config.image.size, min(config.evaluation.batch_size, options.images)
    module, mesh = models.encoder(config), sharding.local_mesh()
    params = jax.jit(lambda: init_encoder(module, (side, side, 3), jax.random.key(0)))()
    encoder = frozen_vit(module, params, image_size=side, batch_size=size, mesh=mesh)
    images = np.random.default_rng(0).integers(0, 256, (options.images, side, side, 3), dtype=np.uint8)
    source = [Example(image, ()) for image in images]
    forward = jax.jit(lambda p, x: module.apply({"params": p}, layers.normalise_images(x)).mean(axis=1))
    count = -(-len(images) // encoder.batch_size)
    batch = jax.device_put(np.resize(images, (encoder.batch_size, side, side, 3)), sharding.batch_sharding(mesh))
    placed = sharding.put_parameters(mesh, params)

    def bare() -> None:
        for _ in range(count):
            forward(placed, batch).block_until_ready()

    part = Part(source, range(len(source)), ["pooled"], "images")
    return {"forward": bare, "extraction": lambda: FeatureStore().read({"": encoder}, part)}


def heads(config: ml_collections.ConfigDict, options: Options) -> dict[str, Callable[[], Any]]:
    """Training the bank of linear heads, and one head on each input, as functions."""
    width, rng, classes = models.encoder(config).size.width, np.random.default_rng(0), options.classes
    views = {
        name: rng.normal(size=(1, options.examples, layers * width)).astype(np.float32)
        for name, layers in (("last", 1), ("last_four", 4))
    }
    truth = Truth("single", np.eye(classes, dtype=bool)[rng.integers(classes, size=options.examples)])
    banks = {BANK: linear.HEADS}
    for name in ("last_four", "last"):
        banks[f"one_head_{name}"] = [head for head in linear.HEADS if head.features == name][:1]
    return {name: lambda bank=bank: linear.fit(bank, views, truth, options.epochs) for name, bank in banks.items()}
