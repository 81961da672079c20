"""Measures the speed of the evaluation on this machine. Run nothing else meanwhile.

  python -m launch.benchmark [--encoder=nano] [--image_size=64] [--patch_size=8] [--images=2000]

Prints the rate of extracting pooled features from images in memory and that of the forward pass alone, and the time of
the bank of 24 linear heads and of a single head on each of its inputs. Each figure is the median of --repeats, in turn,
after compilation.
"""

from collections.abc import Callable, Mapping, Sequence
import statistics
import time

from absl import flags, logging

from configs import base
from launch import common
from tc_jepa.errors import UserError

ENCODER = flags.DEFINE_enum("encoder", "nano", base.SIZES, "Size of the encoder; its weights are random.")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 64, "Side of the images in pixels.", 1)
PATCH_SIZE = flags.DEFINE_integer("patch_size", 8, "Side of the patches in pixels.", 1)
IMAGES = flags.DEFINE_integer("images", 2000, "Number of images that are read.", 1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 250, "Images at once, over all devices.", 1)
EXAMPLES = flags.DEFINE_integer("examples", 4000, "Number of examples that the heads are fitted on.", 6)
CLASSES = flags.DEFINE_integer("classes", 100, "Number of classes of the heads.", 2)
EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of training the heads.", 1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Repeats of each measurement.", 1)

BANK = "the bank of 24 heads"


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.ERROR)
    if IMAGE_SIZE.value % PATCH_SIZE.value:
        raise UserError(f"--image_size={IMAGE_SIZE.value} is not divisible by --patch_size={PATCH_SIZE.value}")
    seconds = in_turn(extraction())
    rates = {name: IMAGES.value / value for name, value in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} images/s")
    print(f"extraction at {100 * rates['extraction'] / rates['bare forward']:.0f} % of the bare forward rate")
    seconds = in_turn(heads())
    for name, value in seconds.items():
        beside = "" if name == BANK else f": {BANK} takes {seconds[BANK] / value:.1f} times as long"
        print(f"{name}, {EPOCHS.value} epochs: {value:.2f} s{beside}")


def in_turn(measured: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each; the first turn, which compiles, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for turn in range(REPEATS.value + 1):
        for name, call in measured.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def extraction() -> dict[str, Callable[[], None]]:
    """The forward pass alone, and the extraction of pooled features."""
    import jax
    import numpy as np

    from tc_jepa.data.sources import Example
    from tc_jepa.distributed import sharding
    from tc_jepa.evaluation.encoder import frozen_vit
    from tc_jepa.evaluation.features import FeatureStore, Part
    from tc_jepa.methods.method import init_encoder
    from tc_jepa.models import layers
    from tc_jepa.models.vit import SIZES, VisionTransformer

    side, size = IMAGE_SIZE.value, BATCH_SIZE.value
    module = VisionTransformer(SIZES[ENCODER.value], PATCH_SIZE.value)
    params = jax.jit(lambda: init_encoder(module, (side, side, 3), jax.random.key(0)))()
    mesh = sharding.local_mesh()
    encoder = frozen_vit(module, params, image_size=side, batch_size=size, mesh=mesh)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES.value, side, side, 3), dtype=np.uint8)
    source = [Example(image, ()) for image in images]
    forward = jax.jit(lambda p, x: module.apply({"params": p}, layers.normalise_images(x)).mean(axis=1))
    count = -(-len(images) // size)
    batch = jax.device_put(np.resize(images, (encoder.batch_size, side, side, 3)), sharding.batch_sharding(mesh))
    placed = sharding.put_parameters(mesh, params)

    def bare() -> None:
        for _ in range(count):
            forward(placed, batch).block_until_ready()

    part = Part(source, range(len(source)), ["pooled"], "images")
    return {"bare forward": bare, "extraction": lambda: FeatureStore().read({"": encoder}, part)}


def heads() -> dict[str, Callable[[], None]]:
    """Training the bank of linear heads, and one head on each input."""
    import numpy as np

    from tc_jepa.evaluation.scores import Truth
    from tc_jepa.evaluation.tasks import linear
    from tc_jepa.models.vit import SIZES

    width, rng = SIZES[ENCODER.value].width, np.random.default_rng(0)
    views = {
        name: rng.normal(size=(1, EXAMPLES.value, layers * width)).astype(np.float32)
        for name, layers in (("last", 1), ("last_four", 4))
    }
    truth = Truth("single", np.eye(CLASSES.value, dtype=bool)[rng.integers(CLASSES.value, size=EXAMPLES.value)])
    banks = {BANK: linear.HEADS}
    for name in ("last_four", "last"):
        banks[f"one head on {name}"] = [head for head in linear.HEADS if head.features == name][:1]
    return {name: lambda bank=bank: linear.fit(bank, views, truth, EPOCHS.value) for name, bank in banks.items()}


if __name__ == "__main__":
    common.run(main)
