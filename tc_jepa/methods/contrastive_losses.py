"""The losses of CLIP, SigLIP and SPARC, of normalised embeddings. All are float32 scalars.

The batch is the global one: where it is laid over devices, the compiler gathers what a device lacks. A pair whose image
has no caption counts nowhere, neither as a pair nor as a negative of another.
"""

import jax
import jax.numpy as jnp

from tc_jepa.methods.losses import masked_mean

FAR = -1e30  # a logit without weight, with finite gradients
SMALL = 1e-12


def unit(x: jax.Array) -> jax.Array:
    """x [..., P] divided by its length; 0, with finite gradients, where that is 0."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), SMALL))


def clip_loss(images_BxP: jax.Array, texts_BxP: jax.Array, scale: jax.Array, valid_B: jax.Array) -> jax.Array:
    """The mean of two cross-entropies: of an image's caption among all captions, and of a caption's image.

    Source: CLIP (Radford et al. 2021, arXiv 2103.00020), Fig. 3.
    """
    logits_BxB = scale * images_BxP @ texts_BxP.T
    return masked_mean(0.5 * (_own(logits_BxB, valid_B) + _own(logits_BxB.T, valid_B)), valid_B, (0,))


def siglip_loss(
    images_BxP: jax.Array,
    texts_BxP: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    valid_B: jax.Array,
    parts: int = 1,
) -> jax.Array:
    """Whether each image and caption of a batch belong together, summed over captions and averaged over images.

    Source: SigLIP (Zhai et al. 2023, arXiv 2303.15343), Algorithm 1. Its section 3.3 is `parts`, which must divide B:
    images stay, captions pass by in as many parts, and B^2 / parts logits are in memory at once. With as many parts as
    there are devices, captions travel round a ring of them, and no device ever holds those of all.
    """
    B, P = images_BxP.shape
    images, valid = images_BxP.reshape(parts, B // parts, P), valid_B.reshape(parts, B // parts)
    own = jnp.eye(B // parts, dtype=bool)

    @jax.checkpoint
    def step(carry, turn):
        total, texts, texts_valid = carry
        logits = scale * jnp.einsum("nip,njp->nij", images, texts) + bias
        matched = own & (turn == 0)
        pair_loss = -jax.nn.log_sigmoid(jnp.where(matched, logits, -logits))
        counted = valid[:, :, None] & texts_valid[:, None, :]
        total += jnp.where(counted, pair_loss, 0.0).sum()
        return (total, jnp.roll(texts, 1, axis=0), jnp.roll(texts_valid, 1, axis=0)), None

    start = jnp.zeros(()), texts_BxP.reshape(parts, B // parts, P), valid
    (total, _, _), _ = jax.lax.scan(step, start, jnp.arange(parts))
    return total / jnp.maximum(valid_B.sum(), 1)


def sparc_loss(patches_BxNxP: jax.Array, words_BxSxP: jax.Array, valid_BxS: jax.Array, scale: jax.Array) -> jax.Array:
    """Whether a word finds its own group of patches among those of the words of its caption, and a group its word.

    A group is the mean of the patches, weighted by their products with the word, which are scaled to 0-1 over the
    image and dropped below 1 / N. Patches and words are not normalised. The mean is over all words of the batch.
    Source: SPARC (Bica et al. 2024, arXiv 2401.09865), section 3.2.
    """
    N = patches_BxNxP.shape[1]
    similarity = jnp.einsum("bsp,bnp->bsn", words_BxSxP, patches_BxNxP)
    lowest, highest = similarity.min(axis=-1, keepdims=True), similarity.max(axis=-1, keepdims=True)
    similarity = (similarity - lowest) / jnp.maximum(highest - lowest, SMALL)
    weights = jnp.where(similarity < 1.0 / N, 0.0, similarity)
    weights /= jnp.maximum(weights.sum(axis=-1, keepdims=True), SMALL)
    groups_BxSxP = unit(jnp.einsum("bsn,bnp->bsp", weights, patches_BxNxP))
    logits_BxSxS = scale * jnp.einsum("bsp,btp->bst", groups_BxSxP, unit(words_BxSxP))
    one_way, other_way = _own(logits_BxSxS, valid_BxS), _own(logits_BxSxS.swapaxes(1, 2), valid_BxS)
    return masked_mean(0.5 * (one_way + other_way), valid_BxS, (0, 1))


def _own(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """Cross-entropy of each row's diagonal entry among its valid columns: [..., R, R], bool [..., R] -> [..., R]."""
    logits = jnp.where(valid[..., None, :], logits, FAR)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.diagonal(logits, axis1=-2, axis2=-1)
