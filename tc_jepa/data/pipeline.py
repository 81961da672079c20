"""From a source to batches: shuffle, draw a method's inputs, batch, in Grain, in an order that resumes exactly.

Randomness is a function of (seed, position in the global stream), never of hosts or workers. The whole state of the
stream is one integer, the step. The order of the operations matters: slicing before the inputs are drawn would give
every host the same random numbers, and batching after prefetching would make batches depend on the number of workers.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np

from tc_jepa.data.mixtures import Mixture
from tc_jepa.data.sources import Captioned, Example
from tc_jepa.data.watched import WatchedBatches

Batch = Any  # a NamedTuple of tc_jepa.batch

# Batches held ready by each worker. Grain's own default, 500, counts batches here: gigabytes.
PREFETCHED_BATCHES = 4
READ_THREADS = 4
SEEDS = 3  # that inputs have for random draws of their own


class Inputs(Protocol):
    """What a method reads of an example: which random draws, and the typed row that results."""

    def rows(self, examples: grain.MapDataset, seeds: tuple[int, ...]) -> grain.MapDataset:
        """Examples -> rows of a batch. Random draws are functions of the SEEDS seeds and the position in the stream."""

    def batched(self, batches: grain.MapDataset, batch_size: int, process_count: int) -> grain.MapDataset:
        """What is done to the parts of batches that a process has; most inputs return them as they are.

        `batch_size` is global. What changes the shapes of arrays must be the same in every process.
        """

    def warning(self, batch: Batch) -> str:
        """What a user should know about the first batch of a run; empty for nothing."""

    def example(self, example: Example) -> Batch:
        """One row, for its shapes and dtypes."""


def batches(
    source: Captioned, inputs: Inputs, *, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
) -> grain.MapDataset:
    """This process's part of every global batch, by step, without end. `batch_size` is global.

    The union over processes of part `i` is the single process's batch `i`, in another order.
    """
    if batch_size % process_count:
        raise ValueError(f"a global batch of {batch_size} does not split over {process_count} processes")
    shuffle_seed, *seeds = (int(word) for word in np.random.SeedSequence(seed).generate_state(1 + SEEDS))
    if isinstance(source, Mixture):
        examples = source.stream(shuffle_seed)
    else:
        examples = grain.MapDataset.source(source).shuffle(seed=shuffle_seed).repeat(None)
    rows = inputs.rows(examples, tuple(seeds))
    rows = rows[process_index::process_count].batch(batch_size // process_count, drop_remainder=True)
    return inputs.batched(rows, batch_size, process_count)


def iterate(
    dataset: grain.MapDataset,
    *,
    start: int,
    workers: int,
    stop: int | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """The batches of steps `start` to `stop` (None: without end), read ahead by threads, in `workers` processes.

    With 0 workers the threads are this process's own; else the iterator ends where it would wait for a worker and
    `cancelled` returns True, and raises UserError where a worker died. Close it when done. `start` costs nothing.
    """
    options = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=PREFETCHED_BATCHES)
    iterator = dataset[start:stop].to_iter_dataset(options)
    return WatchedBatches(iterator, workers, cancelled) if workers else iter(iterator)
