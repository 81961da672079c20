"""From a source to batches: shuffle, crop, choose captions, draw masks, in Grain, in an order that resumes exactly.

Randomness is a function of (seed, position in the global stream), never of hosts or workers; the whole state of the
stream is one integer, the step. The order of the operations matters: slicing before random_map or AddMasks would give
every host the same random numbers, and batching after prefetch would make batches depend on the number of workers.
"""

from collections.abc import Iterator
import dataclasses

from absl import flags
import grain
import numpy as np

from tc_jepa.batch import Batch
from tc_jepa.data import transforms
from tc_jepa.data.captions import tokenizer as captions
from tc_jepa.data.mixtures import Mixture
from tc_jepa.data.sources import Captioned, Example
from tc_jepa.masking import MaskSampler

# Batches held ready by each worker. Grain's own default, 500, counts batches here: gigabytes.
PREFETCHED_BATCHES = 4
READ_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Crop:
    """Side in pixels, area fraction, width / height, and whether half the images are mirrored."""

    size: int
    scale: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool


@dataclasses.dataclass(frozen=True)
class Augment(grain.transforms.RandomMap):
    """An example -> one row of a Batch, still without masks. Draws in a fixed order: crop, flip, captions.

    `captions` are sampled from the example's first `candidates` captions; 0: from all. `reader` None: no captions are
    read, and the crops are the same.
    """

    crop: Crop
    reader: captions.CaptionReader | None
    captions: int
    candidates: int = 0

    def random_map(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        crop = self.crop
        image = transforms.random_resized_crop(example.image, crop.size, crop.scale, crop.aspect, rng)
        if crop.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        candidates = example.captions[: self.candidates or None]
        words = captions.caption_arrays(candidates, self.captions, self.reader, rng)
        return {"images": np.ascontiguousarray(image), **words}


@dataclasses.dataclass(frozen=True)
class AddMasks(grain.transforms.MapWithIndex):
    """A row without masks -> a row of a Batch. The index must be the position in the global stream."""

    masks: MaskSampler
    seed: int

    def map_with_index(self, index: int, row: dict[str, np.ndarray]) -> Batch:
        return Batch(**row, **self.masks.draw_at(self.seed, index)._asdict())


def batches(
    source: Captioned,
    augment: Augment,
    masks: MaskSampler,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    shuffle_captions: bool = False,
) -> grain.MapDataset:
    """This process's part of every global batch, by step, without end. `batch_size` is global.

    The union over processes of part `i` is the single process's batch `i`, in another order. `shuffle_captions`: all is
    as without it, but then each image gets the captions of its neighbour in the process's part.
    """
    if batch_size % process_count:
        raise ValueError(f"a global batch of {batch_size} does not split over {process_count} processes")
    shuffle_seed, augment_seed, mask_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(3))
    if isinstance(source, Mixture):
        dataset = source.stream(shuffle_seed)
    else:
        dataset = grain.MapDataset.source(source).shuffle(seed=shuffle_seed).repeat(None)
    dataset = dataset.random_map(augment, seed=augment_seed).map_with_index(AddMasks(masks, mask_seed))
    dataset = dataset[process_index::process_count].batch(batch_size // process_count, drop_remainder=True)
    return dataset.map(roll_captions) if shuffle_captions else dataset


def roll_captions(batch: Batch) -> Batch:
    """Image i with the captions of image i - 1."""
    names = ("caption_words", "word_valid", "caption_valid")
    return batch._replace(**{name: np.roll(getattr(batch, name), 1, axis=0) for name in names})


def example(source: Captioned, augment: Augment, masks: MaskSampler) -> Batch:
    """One row of a batch, for its shapes."""
    return AddMasks(masks, 0).map_with_index(0, augment.random_map(source[0], np.random.default_rng(0)))


def iterate(dataset: grain.MapDataset, *, start: int, workers: int) -> Iterator[Batch]:
    """The batches from step `start` on, read ahead by threads, in `workers` processes (0: in this one).

    Close it when done. Resuming is a slice of the index, so it costs nothing however far the run is.
    """
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
    iterator = dataset[start:].to_iter_dataset(options)
    if workers:
        # Grain reads an absl flag on its way and fails where none were parsed: in tests, notebooks, plain scripts
        # (google/grain issue 1355).
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
    return iter(iterator)
