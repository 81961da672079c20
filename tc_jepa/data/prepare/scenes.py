"""Drawn scenes."""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import cv2
import numpy as np

from tc_jepa.data.captions.candidates import Candidates
from tc_jepa.data.captions.tokenizer import scenes_vocabulary_path
from tc_jepa.data.prepare import dataset
from tc_jepa.data.prepare.statistics import Summary
from tc_jepa.data.scenes.source import SceneSource
from tc_jepa.data.sources import Source, TEST, TRAIN, VALIDATION


def prepare_scenes(
    count: int,
    output: str,
    seed: int = 0,
    size: int = 64,
    vocabulary: str | None = None,
    words: int | None = None,
    workers: int = 0,
) -> Summary:
    """Writes `count` training scenes of `size` x `size` pixels, and a tenth as many (at least 1) each to val and test.

    The vocabulary stored with them is the scenes' own unless another is given. `words` and `workers` are as in
    prepare_folder. Raises UserError for a count or size below 1, an invalid vocabulary and an existing output.
    """
    counts = {TRAIN: count, VALIDATION: max(1, count // 10), TEST: max(1, count // 10)}
    sources = {split: SceneSource(seed, split, number, size) for split, number in counts.items()}
    model = dataset.read_vocabulary(vocabulary or scenes_vocabulary_path())
    features = dataset.features(sources[TRAIN].tasks, file=False, mask=())
    spec = dataset.DatasetSpec(functools.partial(_read, sources), features, model, words)
    shards = [
        dataset.Shard(split, index, f"{span.start}:{span.stop}", len(span), (split, span))
        for split, number in counts.items()
        for index, span in enumerate(dataset.spans(number))
    ]
    settings = {"source": "scenes", "count": count, "seed": seed, "size": size}
    return dataset.write(output, spec, shards, settings, workers)


def _read(sources: Mapping[str, Source], items: tuple[str, range]) -> Iterator[dataset.Record]:
    """Draws scenes. Images and masks are encoded as PNGs; captions are taken as they are."""
    split, indices = items
    source = sources[split]
    for index in indices:
        drawn = source[index]
        example: dict[str, Any] = {"image": _png(cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR))}
        for name, label in source.labels(index).items():
            example[name] = label if source.tasks[name].kind == "single" else np.flatnonzero(label).tolist()
        example["mask"] = _png(source.mask(index, "shape"))
        yield dataset.Record(example, Candidates(drawn.captions, blank=0, duplicates=0))


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()
