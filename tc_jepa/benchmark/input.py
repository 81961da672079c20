"""What a core makes of images: each part of the input pipeline alone, and the pipeline as training runs it.

Figures are images per second of processor time, over all threads of this process: what one core does if nothing else
keeps it busy. Each part is called in a loop on images that the parts before it have prepared.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import itertools
import time
from typing import Any

import grain
import ml_collections
import numpy as np

from tc_jepa.benchmark.figures import Figure, Figures, in_turn, of_repeats, Options, per_second
from tc_jepa.config import data
from tc_jepa.data import pipeline
from tc_jepa.data.captions import tokenizer
from tc_jepa.data.images import decode_image, EncodedImage
from tc_jepa.data.inputs.jepa import JepaInputs
from tc_jepa.data.inputs.views import Views
from tc_jepa.data.sources import Example
from tc_jepa.data.transforms import Crop, divisor
from tc_jepa.experiment.experiment import build_experiment, Experiment

RATE = "images/s a core"


def measure(config: ml_collections.ConfigDict, options: Options) -> Figures:
    """Returns images/s a core of the parts of `config`'s input pipeline, alone and together.

    "input/share" is the rate of the pipeline over the rate that its bare parts have one after another. Pipelines run in
    threads of this process, whatever data.workers is.
    """
    experiment = build_experiment(config)
    size = min(config.train.batch_size, options.images)
    count = -(-options.images // size) * size
    seconds = in_turn(parts(experiment, config, count, size), options.repeats, time.process_time)
    found = {f"input/{name}": per_second(one, count, RATE) for name, one in seconds.items()}
    bare = sum(one.value for one in seconds.values())
    found["input/parts"] = Figure(count / bare, RATE)
    processor, wall = together(experiment, count // size, size, options.repeats)
    found["input/pipeline"] = per_second(processor, count, RATE)
    found["input/pipeline_wall"] = per_second(wall, count, "images/s, in all threads")
    found["input/share"] = Figure(100 * bare / processor.value, "% of the bare parts")
    if options.rate:
        found["input/cores"] = Figure(options.rate * processor.value / count, f"cores for {options.rate:g} images/s")
    return found


def parts(
    experiment: Experiment, config: ml_collections.ConfigDict, count: int, size: int
) -> dict[str, Callable[[], Any]]:
    """Returns each part of the pipeline as a function that does it for `count` images, by name, in their order."""
    source = data.training_source(config, experiment.words, encoded=True)
    chosen = np.random.default_rng(0).integers(len(source), size=count).tolist()
    examples = [source[i] for i in chosen]
    found: dict[str, Callable[[], Any]] = {"read": lambda: [source[i] for i in chosen]}
    inputs = experiment.inputs
    if isinstance(examples[0].image, EncodedImage):
        fast = data.crops_encoded(config)
        crop = crop_of(inputs) if fast else None
        scales = [_divisor(crop, example.image, i) for i, example in enumerate(examples)]
        files = [example.image.data for example in examples]
        found["decode"] = lambda: [decode_image(file, n) for file, n in zip(files, scales)]
        for example, n in zip(examples, scales):
            example.image.pixels(n)
        if not fast:
            examples = [example._replace(image=example.image.pixels()) for example in examples]
    found |= work_of(inputs, examples)
    rows = [inputs.example(example) for example in examples[:size]]
    stacked = grain.MapDataset.source(rows).batch(size)
    found["batch"] = lambda: [stacked[i] for i in range(count // size)]
    return found


def crop_of(inputs: Any) -> Crop:
    """Returns how inputs crop an image first."""
    return inputs.crop if isinstance(inputs, Views) else inputs.crop.crop


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
    return {"row": lambda: [inputs.example(example) for example in examples]}


@work_of.register
def _(inputs: JepaInputs, examples: Sequence[Example]) -> dict[str, Callable[[], Any]]:
    crop, work = inputs.crop.crop, inputs.crop

    def cut() -> None:
        for i, example in enumerate(examples):
            rng = _generator(i)
            np.ascontiguousarray(crop.flipped(crop.cut(example.image, rng), rng))

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
    return found if work.reader is None else {"tokenise": tokenise, **found}


@work_of.register
def _(inputs: Views, examples: Sequence[Example]) -> dict[str, Callable[[], Any]]:
    return {"views": lambda: [inputs.random_map(example, _generator(i)) for i, example in enumerate(examples)]}


def together(experiment: Experiment, batches: int, size: int, repeats: int) -> tuple[Figure, Figure]:
    """Returns the seconds that the pipeline takes for so many batches: of processor time, and of the clock."""
    processor, wall = [], []
    dataset = experiment.batches(size)
    for repeat in range(repeats + 1):
        start = time.process_time(), time.perf_counter()
        for _ in _closed(pipeline.iterate(dataset, start=repeat * batches, stop=(repeat + 1) * batches, workers=0)):
            pass
        if repeat:
            processor.append(time.process_time() - start[0])
            wall.append(time.perf_counter() - start[1])
    return of_repeats(processor, "s"), of_repeats(wall, "s")


def _closed(iterator: Iterator[Any]) -> Iterator[Any]:
    with contextlib.closing(iterator):
        yield from iterator
