"""What a core makes of images: each part of the input pipeline alone, and the pipeline as training runs it.

Figures are images per second of processor time, over all threads of this process: what one core does if nothing else
keeps it busy. Each part is called in a loop on images that the parts before it have prepared.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
import contextlib
import functools
import itertools
import time
from typing import Any

import grain
import ml_collections
import numpy as np

from tc_jepa.benchmark.figures import Figure, Figures, in_turn, of_repeats, Options, per_second
from tc_jepa.config import data, methods
from tc_jepa.data import pipeline
from tc_jepa.data.captions import tokenizer
from tc_jepa.data.images import decode_image, EncodedImage
from tc_jepa.data.inputs.jepa import JepaInputs
from tc_jepa.data.inputs.labels import CropAndLabels
from tc_jepa.data.inputs.views import Views
from tc_jepa.data.sources import Example
from tc_jepa.data.transforms import Crop, divisor
from tc_jepa.experiment.experiment import build_experiment, Experiment

RATE = "images/s a core"


def measure(config: ml_collections.ConfigDict, options: Options) -> Figures:
    """Returns images/s a core of the parts of `config`'s input pipeline, alone and together.

    "input/bare" is the work of all parts for one image after another in a plain loop, "input/share" the pipeline's rate
    over that. Pipelines run in threads of this process, whatever data.workers is.
    """
    experiment = build_experiment(config)
    size = min(config.train.batch_size, options.images)
    count = -(-options.images // size) * size
    alone = in_turn(parts(experiment, config, count, size), options.repeats, time.process_time)
    batches, wall = experiment.batches(size), []
    starts = itertools.count(0, count // size)

    def pipelined() -> None:
        begin, start = time.perf_counter(), next(starts)
        with contextlib.closing(
            pipeline.iterate(batches, start=start, stop=start + count // size, workers=0)
        ) as iterator:
            collections.deque(iterator, maxlen=0)
        wall.append(time.perf_counter() - begin)

    together = {"bare": functools.partial(bare, experiment, count, size), "pipeline": pipelined}
    seconds = alone | in_turn(together, options.repeats, time.process_time)
    found = {f"input/{name}": per_second(one, count, RATE) for name, one in seconds.items()}
    found["input/pipeline_wall"] = per_second(of_repeats(wall[1:], "s"), count, "images/s, in all threads")
    each_image = seconds["pipeline"].value / count
    found["input/share"] = Figure(100 * seconds["bare"].value / count / each_image, "% of the bare parts")
    if options.rate:
        found["input/cores"] = Figure(options.rate * each_image, f"cores for {options.rate:g} images/s")
    return found


def bare(experiment: Experiment, count: int, size: int) -> None:
    """Makes batches of `count` images in a plain loop, by the work of the pipeline alone."""
    source, inputs = experiment.source, experiment.inputs
    order = np.random.default_rng(0).integers(len(source), size=count).tolist()
    for start in range(0, count, size):
        rows = [row_of(inputs, source[i], number) for number, i in enumerate(order[start : start + size], start)]
        type(rows[0])(*(np.stack(column) for column in zip(*rows, strict=True)))


@functools.singledispatch
def row_of(inputs: Any, example: Example, number: int) -> Any:
    """Returns a row of a batch with random draws of its own, as the pipeline makes it."""
    return inputs.example(example)


@row_of.register
def _(inputs: JepaInputs, example: Example, number: int) -> Any:
    return inputs.row(example, number, _generator(number))


@row_of.register
def _(inputs: Views | CropAndLabels, example: Example, number: int) -> Any:
    return inputs.random_map(example, _generator(number))


def parts(
    experiment: Experiment, config: ml_collections.ConfigDict, count: int, size: int
) -> dict[str, Callable[[], Any]]:
    """Returns each part of the pipeline as a function that does it for `count` images, by name, in their order."""
    source = methods.training_source(config, experiment.words, encoded=True)
    chosen = np.random.default_rng(0).integers(len(source), size=count).tolist()
    examples = [source[i] for i in chosen]
    found = {"read": each(source.__getitem__, chosen)}
    inputs = experiment.inputs
    if isinstance(examples[0].image, EncodedImage):
        fast = data.crops_encoded(config)
        crop = crop_of(inputs) if fast else None
        scales = [_divisor(crop, example.image, i) for i, example in enumerate(examples)]
        files = [example.image.data for example in examples]
        found["decode"] = each(decode_image, files, scales)
        for example, n in zip(examples, scales):
            example.image.pixels(n)
        if not fast:
            examples = [example._replace(image=example.image.pixels()) for example in examples]
    found |= work_of(inputs, examples)
    rows = [inputs.example(example) for example in examples[:size]]
    stacked = grain.MapDataset.source(rows).batch(size)
    found["batch"] = each(stacked.__getitem__, range(count // size))
    return found


def each(function: Callable, *columns: Iterable[Any]) -> Callable[[], None]:
    """Returns a function that calls `function` on each row of the columns. Results are dropped, as the pipeline does.

    Kept, every image would be written to memory that the process never had, which takes a third of decoding one.
    """

    def call() -> None:
        for row in zip(*columns, strict=True):
            function(*row)

    return call


def crop_of(inputs: Any) -> Crop:
    """Returns how inputs crop an image first."""
    return inputs.crop.crop if isinstance(inputs, JepaInputs) else inputs.crop


def _divisor(crop: Crop | None, image: EncodedImage, number: int) -> int:
    if crop is None:
        return 1
    return divisor(image, crop.draw(*image.shape[:2], _generator(number)), crop.size)


def _generator(number: int) -> np.random.Generator:
    """A generator of its own for each image, as the pipeline has it (Grain makes one from seed and position)."""
    return np.random.Generator(np.random.Philox(key=number))


@functools.singledispatch
def work_of(inputs: Any, examples: Sequence[Example]) -> dict[str, Callable[[], Any]]:
    """Returns the parts of what inputs do with decoded examples, by name."""
    return {"row": each(inputs.example, examples)}


@work_of.register
def _(inputs: JepaInputs, examples: Sequence[Example]) -> dict[str, Callable[[], Any]]:
    crop, work = inputs.crop.crop, inputs.crop

    def cut() -> None:
        for i, example in enumerate(examples):
            rng = _generator(i)
            np.ascontiguousarray(crop.flipped(crop.seen(example, rng).image, rng))

    def tokenise() -> None:
        for i, example in enumerate(examples):
            candidates = example.captions[: work.candidates or None]
            tokenizer.caption_arrays(candidates, work.captions, work.reader, _generator(i))

    seeds = itertools.count()  # a new one for each turn, because some samplers keep what they have drawn

    def mask() -> None:
        seed = next(seeds)
        for i in range(len(examples)):
            inputs.masks.draw_at(seed, i)

    found = {"crop": cut, "mask": mask}
    if inputs.corruption is not None:
        images = [crop.seen(example, _generator(i)).image for i, example in enumerate(examples)]
        found["corrupt"] = each(lambda i: inputs.corruption.apply(images[i], _generator(i)), range(len(images)))
    return found if work.reader is None else {"tokenise": tokenise, **found}


@work_of.register
def _(inputs: Views, examples: Sequence[Example]) -> dict[str, Callable[[], Any]]:
    return {"views": each(lambda i: inputs.random_map(examples[i], _generator(i)), range(len(examples)))}
