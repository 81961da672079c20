"""Trained text encoders: that of a T5, or the one with which a training run read its captions.

PretrainedTextEncoder is for users; T5Captions encodes all captions of a dataset for data/word_vectors/write.py.
"""

from collections.abc import Callable, Sequence
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tc_jepa.config import data as config_data
from tc_jepa.config import methods
from tc_jepa.convert import t5
from tc_jepa.convert.tensors import read_json
from tc_jepa.data.captions.tokenizer import CaptionTokenizer
from tc_jepa.data.word_vectors.folder import WordVectorInfo
from tc_jepa.distributed import sharding
from tc_jepa.errors import UserError
from tc_jepa.models.layers import Params
from tc_jepa.models.text.embedding import EmbeddingText
from tc_jepa.models.text.t5 import T5Config, T5Encoder
from tc_jepa.storage import hashing
from tc_jepa.storage.checkpoint import chosen_step, CONFIG_FILE, read_config, restore_trained
from tc_jepa.storage.files import as_path
from tc_jepa.storage.finite import check_finite

T5_WORDS = 32  # length to which strings are padded or cut for a T5 without a run
DTYPES = (jnp.float32, jnp.bfloat16)  # T5 overflows in float16
LENGTH_STEP = 8  # tokens; rows of T5Captions are padded to a multiple of it, so that few programs are compiled


def load_text_encoder(
    path: str | os.PathLike, step: int | None = None, dtype: jnp.dtype = jnp.float32
) -> "PretrainedTextEncoder":
    """Returns the text encoder of a Hugging Face T5 folder, or of a workdir at `step` (None: the newest).

    Of a run with learned word vectors these and its vocabulary are loaded, of a run with a T5 the folder that its
    configuration names, which is the same at every step. `dtype`, float32 or bfloat16, is that of matrix products and
    vectors; parameters are float32. Raises UserError where anything is missing or does not fit, and for a run without
    a text encoder: one that read no captions, or stored word vectors.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype.name} is not supported; give float32 or bfloat16", about="dtype")
    path = as_path(path)
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} holds no {CONFIG_FILE}; give the folder of a T5, or the workdir of a run")
    if "model_type" in read_json(path / CONFIG_FILE):
        if step is not None:
            raise UserError(f"{path} is not a workdir and has no steps; leave step {step} out", about="step")
        return _t5(path, T5_WORDS, dtype)
    config = read_config(path)
    try:
        kind, words, weights = config.model.text, config.captions.words, config.model.text_weights
        reads_captions = methods.chosen(config).reads_captions(config)
    except (AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path / CONFIG_FILE} is not that of a T5 or of a run of this version ({reason})") from error
    if not reads_captions:
        method = "model.conditioner=none" if config.model.conditioner == "none" else f"method.name={config.method.name}"
        raise UserError(f"{path} read no captions ({method}); give another run or the folder of a T5")
    if kind == "stored":
        raise UserError(f"{path} read stored word vectors (model.text=stored); give the folder of the T5 they are from")
    if kind == "t5":
        if step is not None:
            chosen_step(path, step)
        return _t5(Path(weights), words, dtype)
    params = restore_trained(path, step, "text")
    check_finite(path, {"text": params})
    size, width = params["words"].shape
    tokenizer = functools.partial(_own_vocabulary, config, size)
    return PretrainedTextEncoder(EmbeddingText(size, width, words), params, size, words, tokenizer, dtype)


def _t5(folder: Path, words: int, dtype: jnp.dtype) -> "PretrainedTextEncoder":
    config, params = t5.load(folder)
    check_finite(folder, {"text": params})
    tokenizer = functools.partial(_t5_vocabulary, folder, config, words)
    return PretrainedTextEncoder(T5Encoder(config, dtype), params, config.vocabulary_size, words, tokenizer, dtype)


def _t5_vocabulary(folder: str | os.PathLike, config: T5Config, words: int) -> CaptionTokenizer:
    vocabulary = t5.vocabulary(folder)
    tokenizer = CaptionTokenizer(vocabulary, words)
    t5.check_vocabulary(config, tokenizer.vocabulary_size, vocabulary)
    return tokenizer


def _own_vocabulary(config, size: int) -> CaptionTokenizer:
    tokenizer = config_data.tokenizer(config)
    if tokenizer.vocabulary_size != size:
        now = f"its vocabulary now has {tokenizer.vocabulary_size} pieces; restore the one of the training, or give ids"
        raise UserError(f"the run learned {size} word vectors and {now}", about="captions.vocabulary")
    return tokenizer


class PretrainedTextEncoder:
    """Maps captions to word vectors on JAX's default device. It is compiled once for every shape.

    Called with a string or a sequence of strings, which are padded or cut to `words` pieces; or with ids, integers
    [..., S], and their validity [..., S], false or 0 for padding. Returns [..., S, E], E = `width`, in the dtype that
    it was loaded with, 0 in padding. Raises UserError for anything else. The first string opens the vocabulary.

    Matrix products have precision HIGHEST, so that float32 is not rounded to TF32 on GPU or to bfloat16 on TPU. On CPU
    that costs nothing; on GPU and TPU the cost has not been measured.
    """

    def __init__(
        self,
        encoder: EmbeddingText | T5Encoder,
        params: Params,
        vocabulary_size: int,
        words: int,
        tokenizer: Callable[[], CaptionTokenizer],
        dtype: jnp.dtype,
    ):
        self.words, self.width = words, params["words"].shape[-1]
        self._vocabulary_size, self._open_tokenizer = vocabulary_size, tokenizer
        self._any_length = isinstance(encoder, T5Encoder)  # learned positions are as many as the run's words
        self._params = jax.device_put(params)
        self._encode = jax.jit(functools.partial(_encode, encoder, dtype))

    @functools.cached_property
    def tokenizer(self) -> CaptionTokenizer:
        return self._open_tokenizer()

    def tokens(self, text: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids int32 and their validity bool, [S] for a string or [count, S] for a sequence of strings."""
        several = [text] if isinstance(text, str) else list(text)
        if not several or not all(isinstance(one, str) for one in several):
            raise UserError("text is not a string or a sequence of strings; give that, or ids and their validity")
        ids, valid = self.tokenizer.encode(several)
        return (ids[0], valid[0]) if isinstance(text, str) else (ids, valid)

    def __call__(
        self, text_or_ids: str | Sequence[str] | np.ndarray | jax.Array, mask: np.ndarray | jax.Array | None = None
    ) -> jax.Array:
        ids, mask = self.tokens(text_or_ids) if mask is None else self._checked(text_or_ids, mask)
        S = ids.shape[-1]
        vectors = self._encode(self._params, ids.reshape(-1, 1, S), mask.reshape(-1, 1, S))
        return vectors.reshape(*ids.shape, self.width)

    def _checked(self, ids, mask) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = np.asarray(ids), np.asarray(mask)
        if not np.issubdtype(ids.dtype, np.integer) or not (
            mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)
        ):
            raise UserError(f"ids are {ids.dtype} and their validity {mask.dtype}; give integers and booleans")
        mask = mask.astype(bool)
        if ids.shape != mask.shape or not ids.size:
            raise UserError(f"ids have shape {ids.shape} and their validity {mask.shape}; give [..., S] for both")
        if not self._any_length and ids.shape[-1] != self.words:
            raise UserError(f"rows of {ids.shape[-1]} ids; this run's word vectors take {self.words}, padded with 0")
        wrong = ids[mask & ((ids < 0) | (ids >= self._vocabulary_size))]
        if wrong.size:
            raise UserError(f"id {wrong[0]} is not in the vocabulary, which has 0 to {self._vocabulary_size - 1}")
        return ids.astype(np.int32), mask


def _encode(
    encoder: EmbeddingText | T5Encoder, dtype: jnp.dtype, params: Params, ids: jax.Array, valid: jax.Array
) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return encoder.apply({"params": params}, ids, valid).astype(dtype)


class T5Captions:
    """Maps texts to their word vectors, float32 [words, E] each, on all devices of this process.

    `folder` is the folder of a Hugging Face T5. Its vocabulary cuts each text to at most `words` tokens, end of
    sentence included. Each call of the network reads `batch_size` captions, sorted by length. Matrix products have
    JAX's default precision, which rounds float32 on GPU and TPU; the vectors are stored in 16 bits. Raises UserError
    for an unusable folder and for a batch size that is not divisible by the number of devices.
    """

    def __init__(self, folder: str, words: int, batch_size: int):
        config, params = t5.load(folder)
        self.tokenizer = _t5_vocabulary(folder, config, words)
        mesh = sharding.local_mesh()
        sharding.check_batch(mesh, batch_size, "--batch_size")
        self.width, self._batch_size = config.width, batch_size
        self._identity = {
            "weights": hashing.parameters_sha256(config, params),
            "vocabulary": hashing.file_sha256(t5.vocabulary(folder)),
        }
        whole, self._rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._params = jax.device_put(params, whole)
        encoder = T5Encoder(config)
        self._apply = jax.jit(
            lambda params, ids, valid: encoder.apply({"params": params}, ids[:, None], valid[:, None])[:, 0],
            in_shardings=(whole, self._rows, self._rows),
            out_shardings=self._rows,
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
            tokens = jax.device_put((ids[padded, :longest], valid[padded, :longest]), self._rows)
            computed.append(self._apply(self._params, *tokens))
        vectors = {}
        for rows, array in zip(batches, computed):
            vectors |= {row: one[: lengths[row]] for row, one in zip(rows.tolist(), np.asarray(array))}
        return [vectors[row] for row in range(len(captions))]
