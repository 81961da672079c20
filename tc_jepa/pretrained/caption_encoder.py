"""A frozen T5 that encodes captions before training, for data/word_vectors/write.py."""

from collections.abc import Sequence

import jax
import numpy as np

from tc_jepa.convert import t5
from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.word_vectors.folder import WordVectorInfo
from tc_jepa.distributed import sharding
from tc_jepa.models.text.t5 import T5Encoder
from tc_jepa.storage import hashing

LENGTH_STEP = 8  # tokens; rows are padded to a multiple of it, so that few programs are compiled


class T5Captions:
    """Maps texts to their word vectors, float32 [words, E] each, on all devices of this process.

    `folder` is the folder of a Hugging Face T5. Its vocabulary cuts each text to at most `words` tokens, end of
    sentence included. Each call of the network reads `batch_size` captions, sorted by length. Matrix products have
    JAX's default precision, which rounds float32 on GPU and TPU; the vectors are stored in 16 bits. Raises UserError
    for an unusable folder and for a batch size that is not divisible by the number of devices.
    """

    def __init__(self, folder: str, words: int, batch_size: int):
        config, params = t5.load(folder)
        vocabulary = t5.vocabulary(folder)
        self.tokenizer = CaptionTokenizer(vocabulary, words)
        t5.check_vocabulary(config, self.tokenizer.vocabulary_size, vocabulary)
        mesh = sharding.local_mesh()
        sharding.check_batch(mesh, batch_size, "--batch_size")
        self.width, self._batch_size = config.width, batch_size
        self._identity = {
            "weights": hashing.parameters_sha256(config, params),
            "vocabulary": hashing.file_sha256(vocabulary),
        }
        whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._params = jax.device_put(params, whole)
        encoder = T5Encoder(config)
        self._apply = jax.jit(
            lambda params, ids, valid: encoder.apply({"params": params}, ids[:, None], valid[:, None])[:, 0],
            in_shardings=(whole, rows, rows),
            out_shardings=rows,
        )

    def info(self, name: str, dtype: str) -> WordVectorInfo:
        """Returns the description of this encoder's vectors when they are stored in `dtype` and called `name`."""
        return WordVectorInfo(name, words=self.tokenizer.words, width=self.width, dtype=dtype, **self._identity)

    def __call__(self, captions: Sequence[str]) -> list[np.ndarray]:
        ids, valid = self.tokenizer.encode(captions)
        lengths = valid.sum(axis=1)
        order, size = np.argsort(lengths, kind="stable"), self._batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        computed = []  # all batches are dispatched before the first is waited for
        for rows in batches:
            longest = min(-(-lengths[rows[-1]] // LENGTH_STEP) * LENGTH_STEP, self.tokenizer.words)
            padded = np.resize(rows, size)
            computed.append(self._apply(self._params, ids[padded, :longest], valid[padded, :longest]))
        vectors = {}
        for rows, array in zip(batches, computed):
            vectors |= {row: one[: lengths[row]] for row, one in zip(rows.tolist(), np.asarray(array))}
        return [vectors[row] for row in range(len(captions))]
