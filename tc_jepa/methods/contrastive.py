"""CLIP, SigLIP and SPARC: an image's embedding is that of its caption, and not those of others.

The encoder is that of all methods here, so what stands for an image is the mean of its patch features. CLIP reads a
class token and SigLIP learned attention instead.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tc_jepa.batch import PairBatch
from tc_jepa.methods.contrastive_losses import clip_loss, siglip_loss, sparc_loss, unit
from tc_jepa.methods.feature_metrics import feature_metrics
from tc_jepa.methods.method import init_encoder, initialise, merge, Stateless
from tc_jepa.models.layers import Params
from tc_jepa.models.shared_space import Shared, SharedSpace
from tc_jepa.models.text.tower import TextTower
from tc_jepa.models.vit import VisionTransformer

KINDS = ("clip", "siglip", "sparc")


@dataclasses.dataclass(frozen=True)
class Contrastive(Stateless):
    """The method as a whole. Negatives are all other pairs of a batch, so a batch cannot be computed in parts.

    `kind` is one of KINDS: clip is a softmax over a batch; siglip a sigmoid for each pair, in `ring` parts (see
    siglip_loss); sparc is clip, plus `fine_weight` times the fine-grained loss of patches and words. A caption's
    embedding is that of its last word, the end of the sentence; for sparc it is the mean over its words.
    Parameters are of "encoder", "text" and "space"; there is no extra state.
    """

    encoder: VisionTransformer
    text: TextTower
    space: SharedSpace
    kind: str
    ring: int = 1
    fine_weight: float = 1.0

    def init(self, key, example: PairBatch, frozen, given=None, given_extra=None) -> tuple[Params, Params]:
        """The parameters before training, and no extra state: see Method.init. Nothing is frozen."""
        del frozen, given_extra
        text_key, space_key = jax.random.split(jax.random.fold_in(key, 1))
        params = {"encoder": init_encoder(self.encoder, example.images.shape, key)}
        params["text"], words = initialise(self.text, text_key, example.words[None], example.word_valid[None])
        features = jnp.zeros((1, self.encoder.size.width))
        params["space"], _ = initialise(self.space, space_key, features, words[:, 0])
        return (merge(params, given) if given else params), {}

    def loss(
        self, params: Params, extra: Params, batch: PairBatch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss, its unweighted terms, the scale of the logits, and signs of collapse, float32 scalars."""
        del extra, key, step
        features_BxNxD = self.features(params, batch.images)
        words_BxSxE = self.words(params, batch.words, batch.word_valid)
        shared = self.shared(params, features_BxNxD.mean(axis=1), self.pooled(words_BxSxE, batch.word_valid))
        images_BxP, texts_BxP, valid_B = unit(shared.images), unit(shared.texts), batch.caption_valid
        if self.kind == "siglip":
            terms = {"pairs": siglip_loss(images_BxP, texts_BxP, shared.scale, shared.bias, valid_B, self.ring)}
        else:
            terms = {"contrast": clip_loss(images_BxP, texts_BxP, shared.scale, valid_B)}
        if self.kind == "sparc":
            each = self.shared(params, features_BxNxD, words_BxSxE)
            valid_BxS = batch.word_valid & valid_B[:, None]
            terms["fine"] = sparc_loss(each.images, each.texts, valid_BxS, shared.scale)
        metrics = {f"loss/{name}": value for name, value in terms.items()} | feature_metrics(features_BxNxD)
        return self.total(terms), metrics | {"logit_scale": shared.scale, "logit_bias": shared.bias}

    def total(self, terms: dict[str, jax.Array]) -> jax.Array:
        return sum(value * (self.fine_weight if name == "fine" else 1.0) for name, value in terms.items())

    def words(self, params: Params, words_BxS: jax.Array, valid_BxS: jax.Array) -> jax.Array:
        """The words of captions -> their features float32 [B, S, E]."""
        return self.text.apply({"params": params["text"]}, words_BxS, valid_BxS)

    def pooled(self, words_BxSxE: jax.Array, valid_BxS: jax.Array) -> jax.Array:
        """What stands for a caption: [B, E]."""
        count_B = valid_BxS.sum(axis=1)
        if self.kind == "sparc":
            return words_BxSxE.sum(axis=1) / jnp.maximum(count_B, 1)[:, None]
        last_B = jnp.maximum(count_B - 1, 0)
        return jnp.take_along_axis(words_BxSxE, last_B[:, None, None], axis=1)[:, 0]

    def shared(self, params: Params, images: jax.Array, texts: jax.Array) -> Shared:
        """Features of images [..., D] and of words or captions [..., E] in the shared space."""
        return self.space.apply({"params": params["space"]}, images, texts)
