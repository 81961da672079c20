"""A text decoder on the patch features of a frozen encoder: it is trained to continue prompts, and writes captions.

One decoder learns all tasks, told apart by their prompts, as in LiT-Decoder (Beyer et al. 2023, arXiv 2303.17376).
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tc_jepa.data.captions.tokenizer import CaptionTokenizer, EOS, PAD, UNKNOWN
from tc_jepa.evaluation import heads
from tc_jepa.evaluation.encoder import full_precision
from tc_jepa.evaluation.rows import Rows
from tc_jepa.evaluation.task import DecoderSize
from tc_jepa.models import layers
from tc_jepa.models.layers import Params

RATE, WEIGHT_DECAY, MOST_GRADIENT = 1e-3, 0.05, 1.0  # of AdamW; the norm that gradients are clipped to
BATCH = 64  # texts of a step; images that are written about at once
SEED = 0
LENGTH_PENALTY = 0.6  # of beams, as in GNMT (Wu et al. 2016, arXiv 1609.08144, Eq. 14)
FAR = -1e30


Keys = tuple[tuple[jax.Array, jax.Array], ...]  # by block: keys and values of a text's ids, [R, S, heads, channels]


class Decoder(nn.Module):
    """ids int [R, S] and patch features [I, N, D] -> logits of the next id, float32 [R, S, V].

    A pre-norm transformer: a text attends to its earlier ids, then to all patches of its image, which are not pooled.
    Positions of ids and of patches are learned. Texts about one image are next to each other, R / I of them.
    """

    vocabulary_size: int
    depth: int
    width: int
    longest: int  # S, at most

    def __call__(self, ids_RxS: jax.Array, patches_IxNxD: jax.Array) -> jax.Array:
        return self._run(ids_RxS, patches_IxNxD, None, 0)[0]

    def extend(
        self, ids_R: jax.Array, patches_IxNxD: jax.Array, keys: Keys, place: jax.Array
    ) -> tuple[jax.Array, Keys]:
        """The logits [R, V] after one more id of each text, its `place`, and the keys with it. Begin with no_keys."""
        logits_Rx1xV, keys = self._run(ids_R[:, None], patches_IxNxD, keys, place)
        return logits_Rx1xV[:, 0], keys

    def no_keys(self, texts: int) -> Keys:
        zeros = jnp.zeros(
            (texts, self.longest, layers.attention_heads(self.width), self.width // layers.attention_heads(self.width))
        )
        return ((zeros, zeros),) * self.depth

    @nn.compact
    def _run(self, ids_RxT: jax.Array, patches_IxNxD: jax.Array, keys: Keys | None, place) -> tuple[jax.Array, Keys]:
        W, T, linear = self.width, ids_RxT.shape[1], layers.Linear(std=0.6 * self.width**-0.5, depth_rescaled=True)
        init = linear.init  # as attentive.py
        table = self.param("words", init, (self.vocabulary_size, W))
        positions_of_patches = self.param("positions_of_patches", init, (patches_IxNxD.shape[1], W))
        positions = self.param("positions", init, (self.longest, W))
        x_RxTxW = table[ids_RxT] + jax.lax.dynamic_slice_in_dim(positions, place, T)
        seen_IxNxW = linear(W, "patches")(layers.layer_norm("norm_patches")(patches_IxNxD)) + positions_of_patches
        read = []
        for i in range(self.depth):
            block = _Block(i, linear, name=f"blocks_{i}")
            x_RxTxW, own = block(x_RxTxW, seen_IxNxW, keys and keys[i], place)
            read.append(own)
        return linear(self.vocabulary_size, "head")(layers.layer_norm("norm")(x_RxTxW)), tuple(read)


class _Block(nn.Module):
    index: int
    linear: layers.Linear

    @nn.compact
    def __call__(self, x_RxTxW: jax.Array, seen_IxNxW: jax.Array, past: tuple | None, place) -> tuple[jax.Array, tuple]:
        W, output = x_RxTxW.shape[-1], self.linear.into_residual(self.index)

        def part(name: str, x: jax.Array) -> jax.Array:
            return self.linear(W, name)(x).reshape(*x.shape[:2], layers.attention_heads(W), -1)

        normed = layers.layer_norm("norm1")(x_RxTxW)
        q, k, v = (part(f"text_{name}", normed) for name in "qkv")
        if past is None:
            read = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1) for old, new in zip(past, (k, v)))
            read = jax.nn.dot_product_attention(q, k, v, mask=(jnp.arange(k.shape[1]) <= place)[None, None, None])
        x = x_RxTxW + output(W, "text_proj")(read.reshape(x_RxTxW.shape))

        of_images = layers.layer_norm("norm2")(x).reshape(len(seen_IxNxW), -1, W)  # all texts about an image at once
        keys_and_values = part("image_k", seen_IxNxW), part("image_v", seen_IxNxW)
        read = jax.nn.dot_product_attention(part("image_q", of_images), *keys_and_values)
        x = x + output(W, "image_proj")(read.reshape(x.shape))
        return x + layers.Mlp(4 * W, W, self.linear, output, name="mlp")(layers.layer_norm("norm3")(x)), (k, v)


class Text(NamedTuple):
    """What is to be written about an image after a prompt."""

    image: int  # row of the features
    prompt: str
    answer: str


class FittedDecoder:
    """A trained decoder with its tokenizer, and the ids that it knows, int [V], ascending."""

    def __init__(self, module: Decoder, params: Params, tokenizer: CaptionTokenizer, known: np.ndarray):
        self._module, self._params, self._tokenizer, self._known = module, params, tokenizer, known

    def write(
        self, features: np.ndarray | Rows, images: Sequence[int], prompts: Sequence[str], beams: int
    ) -> list[str]:
        """What the decoder writes about each of some images, rows of features [n, N, D], after its prompt.

        The best of a beam search; with one beam it is greedy.
        """
        ids, lengths = _prompts(self._tokenizer, prompts)
        S = self._module.longest
        lengths = np.minimum(lengths, S - 1)  # a longer one than in training is cut
        ids = np.pad(_among(ids, self._known), ((0, 0), (0, S)))[:, :S]
        written, rows = [], np.asarray(images)
        size = min(BATCH, len(rows))
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            padding = size - len(rows[part])
            arrays = features[rows[part]], ids[part], lengths[part]
            padded = [np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1), mode="edge") for x in arrays]
            found = np.asarray(search(self._params, *padded, self._module, beams))[: size - padding]
            ends = (_until_end(row[length:]) for row, length in zip(found, lengths[part]))
            written += [self._tokenizer.decode(self._known[end]) for end in ends]
        return written


def fit(
    size: DecoderSize, features: np.ndarray | Rows, texts: Sequence[Text], tokenizer: CaptionTokenizer
) -> FittedDecoder:
    """Trains a decoder on texts about images, rows of features float32 [n, N, D]. The loss is of answers alone.

    Its vocabulary is the part of the tokenizer's that occurs in these texts: T5's has 32,000 ids.
    """
    prompts, lengths = _prompts(tokenizer, [text.prompt for text in texts])
    answers, valid = tokenizer.encode([text.answer for text in texts])
    ids, counted = _joined(prompts, lengths, answers, valid)
    known = np.union1d(ids, [PAD, EOS, UNKNOWN])
    ids, images = _among(ids, known), np.array([text.image for text in texts])
    module = Decoder(len(known), size.depth, size.width, ids.shape[1])
    params = jax.jit(module.init)(jax.random.key(SEED), ids[:1], features[:1])["params"]
    rng = np.random.default_rng(SEED)
    drawn = (rng.integers(len(texts), size=BATCH) for _ in range(size.steps))
    batches = ((ids[rows], counted[rows], features[images[rows]]) for rows in drawn)
    bank = heads.Bank(heads.Head(loss, (module,), _clipped), params, [(RATE, WEIGHT_DECAY)])
    (trained,) = heads.train([bank], batches, heads.rate_fractions(size.steps))
    return FittedDecoder(module, jax.tree.map(lambda x: x[0], trained), tokenizer, known)


def _clipped(rate: jax.Array | float, weight_decay: jax.Array | float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(MOST_GRADIENT), heads.adamw(rate, weight_decay))


def loss(params: Params, batch: tuple[jax.Array, jax.Array, jax.Array], module: Decoder) -> jax.Array:
    """The mean cross-entropy of the ids that count, each from the ids before it and the image, in nats.

    `batch`: ids int [R, S], which of them count bool [R, S], and patch features float32 [R, N, D].
    """
    ids_RxS, counted_RxS, patches_RxNxD = batch
    logits = module.apply({"params": params}, ids_RxS[:, :-1], patches_RxNxD)
    each = optax.losses.softmax_cross_entropy_with_integer_labels(logits, ids_RxS[:, 1:])
    counted = counted_RxS[:, 1:]
    return jnp.where(counted, each, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def _prompts(tokenizer: CaptionTokenizer, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Ids of prompts without their end of sentence, int32 [n, longest], and their lengths, int [n]."""
    ids, valid = tokenizer.encode(prompts)
    lengths = valid.sum(axis=1) - 1
    ids[np.arange(len(ids)), lengths] = PAD
    return ids[:, : lengths.max()], lengths


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each id among the known ones, ascending; of others that of UNKNOWN. PAD and EOS keep theirs."""
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, place, UNKNOWN).astype(np.int32)


def _joined(
    prompts: np.ndarray, lengths: np.ndarray, answers: np.ndarray, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Answers after their prompts: ids int32 [n, S], and bool [n, S], which of them are of the answer.

    S is as long as the longest of them.
    """
    ids = np.pad(prompts, ((0, 0), (0, answers.shape[1])))
    counted = np.zeros(ids.shape, bool)
    place = lengths[:, None] + np.arange(answers.shape[1])
    np.put_along_axis(ids, place, answers, axis=1)
    np.put_along_axis(counted, place, valid, axis=1)
    S = int((lengths + valid.sum(axis=1)).max())
    return ids[:, :S], counted[:, :S]


@functools.partial(jax.jit, static_argnames=("module", "beams"))
@full_precision
def search(
    params: Params, patches_BxNxD: jax.Array, prompts_BxS: jax.Array, lengths_B: jax.Array, module: Decoder, beams: int
) -> jax.Array:
    """The best of `beams` continuations of each prompt, by a beam search: ids int32 [B, S], PAD after their end.

    All texts are read id by id at once, so that those of shorter prompts are continued earlier. `lengths_B` are those
    of the prompts, and S is the decoder's longest text. The search ends with the last of all beams, or after S ids.
    """
    B, S, K = *prompts_BxS.shape, beams

    def unfinished(carry):
        return (carry[0] + 1 < S) & ~carry[3].all()

    def step(carry):
        place, ids_BxKxS, score_BxK, done_BxK, keys = carry
        ids_R = ids_BxKxS[..., place].reshape(-1)
        logits_RxV, keys = module.apply({"params": params}, ids_R, patches_BxNxD, keys, place, method="extend")
        next_BxKxV = jax.nn.log_softmax(logits_RxV.reshape(B, K, -1).at[..., PAD].set(FAR))
        ended = jnp.full(next_BxKxV.shape[-1], FAR).at[PAD].set(0.0)
        total = score_BxK[..., None] + jnp.where(done_BxK[..., None], ended, next_BxKxV)
        best_BxK, chosen = jax.lax.top_k(total.reshape(B, -1), K)
        prompted = (place + 1 < lengths_B)[:, None]  # the next id is of the prompt
        score_BxK = jnp.where(prompted, score_BxK, best_BxK)
        beam_BxK = jnp.where(prompted, jnp.arange(K), chosen // total.shape[-1])
        word_BxK = jnp.where(prompted, ids_BxKxS[..., place + 1], chosen % total.shape[-1])
        ids_BxKxS = jnp.take_along_axis(ids_BxKxS, beam_BxK[..., None], axis=1).at[..., place + 1].set(word_BxK)
        done_BxK = jnp.take_along_axis(done_BxK, beam_BxK, axis=1) | (~prompted & (word_BxK == EOS))
        rows_R = (K * jnp.arange(B)[:, None] + beam_BxK).reshape(-1)
        return place + 1, ids_BxKxS, score_BxK, done_BxK, jax.tree.map(lambda x: x[rows_R], keys)

    start = (
        0,
        jnp.broadcast_to(prompts_BxS[:, None], (B, K, S)),
        jnp.broadcast_to(jnp.where(jnp.arange(K) == 0, 0.0, FAR), (B, K)),  # all beams start as one
        jnp.zeros((B, K), bool),
        module.no_keys(B * K),
    )
    _, ids_BxKxS, score_BxK, _, _ = jax.lax.while_loop(unfinished, step, start)
    written = (jnp.arange(S) >= lengths_B[:, None, None]) & (ids_BxKxS != PAD)
    best_B = (score_BxK / ((5.0 + written.sum(axis=-1)) / 6.0) ** LENGTH_PENALTY).argmax(axis=1)
    return jnp.take_along_axis(ids_BxKxS, best_B[:, None, None], axis=1)[:, 0]


def _until_end(ids: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero((ids == EOS) | (ids == PAD))
    return ids[: ends[0]] if len(ends) else ids
