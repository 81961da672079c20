"""I-JEPA, TC-JEPA, students of a frozen teacher, and pixel prediction: predict hidden patches from visible ones.

The three functions predict, forward and loss read like section 3 of the paper (arXiv 2605.03245).
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tc_jepa.batch import JepaBatch
from tc_jepa.methods.anti_collapse import anti_collapse_terms
from tc_jepa.methods.attention_metrics import reading_metrics
from tc_jepa.methods.feature_metrics import feature_metrics
from tc_jepa.methods.losses import loss_terms, Objective
from tc_jepa.methods.method import init_encoder, initialise, merge, Metrics
from tc_jepa.methods.targets import Momentum, Target
from tc_jepa.models import layers, vit
from tc_jepa.models.conditioners.base import Reading, Words
from tc_jepa.models.layers import Params
from tc_jepa.models.predictor import Predictor
from tc_jepa.models.vit import VisionTransformer


class Prediction(NamedTuple):
    """What the hidden patches of a batch are predicted to be, what they are, and what was read on the way."""

    batch: JepaBatch  # with its targets as they were predicted: joined where the method says so
    context: jax.Array  # float32 [B, K, D], features of the visible patches
    unnormalised: jax.Array | None  # the same before the last LayerNorm, where a term of the loss acts on them
    predicted: jax.Array  # float32 [B, M, T, D]
    targets: jax.Array  # float32 [B, M, T, D]
    words: Words | None  # None where no captions are read
    readings: list[Reading]


@dataclasses.dataclass(frozen=True)
class Jepa:
    """Joint-embedding prediction with optional captions: a `method.Method`.

    `text` is a text encoder of tc_jepa.models.text, None where the predictor reads no captions. Its parameters are
    trained ("text" in the trained parameters) or frozen ("text" in the frozen ones). `target` says what is predicted;
    the extra state is the target's parameters. `joint_targets`: all target blocks share one sequence of the predictor.
    """

    encoder: VisionTransformer
    predictor: Predictor
    text: nn.Module | None
    target: Target
    objective: Objective
    momentum: Momentum
    joint_targets: bool = False

    @property
    def mean_over_images(self) -> bool:
        """False where targets are standardised over the batch, or a term of the loss acts on its covariance."""
        return not self.target.whole_batch and not self.objective.anti_collapse

    def init(
        self,
        key: jax.Array,
        example: JepaBatch,
        frozen: Params,
        given: Params | None = None,
        given_extra: Params | None = None,
    ) -> tuple[Params, Params]:
        """See method.Method. `given_extra` are the parameters of a frozen teacher."""
        one = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), example)
        params = {"encoder": init_encoder(self.encoder, example.images.shape, key)}
        text_key, predictor_key = jax.random.split(jax.random.fold_in(key, 1))
        if self.text is not None and "text" not in frozen:
            params["text"], _ = initialise(self.text, text_key, one.caption_words, one.word_valid)
        words = self._words({**frozen, **params}, one)
        context = jnp.zeros((*one.context_indices.shape, self.encoder.size.width))
        params["predictor"], _ = initialise(self.predictor, predictor_key, context, *_places(one), words)
        if given:
            params = merge(params, given)
        return params, self.target.init(params["encoder"]) if given_extra is None else given_extra

    def loss(
        self, params: Params, extra: Params, batch: JepaBatch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The paper's Eq. 1 with the regularisers Eq. 3 and 4, ramped up over the objective's warm-up."""
        guess = self.predict(params, extra, batch, key)
        terms = self.terms(guess)
        if self.objective.anti_collapse:
            names, features = tuple(self.objective.anti_collapse), guess.unnormalised
            terms |= anti_collapse_terms(features, batch.context_valid, jax.random.fold_in(key, 1), names)
        metrics = {f"loss/{name}": value for name, value in terms.items()}
        metrics |= feature_metrics(guess.context, batch.context_valid)
        metrics |= {
            "momentum": self.momentum(step),
            "context_tokens": batch.context_valid.sum(axis=-1).mean(dtype=jnp.float32),
            "context_dropped": batch.context_dropped.mean(dtype=jnp.float32),
            "target_tokens": batch.target_valid.sum(axis=-1).mean(dtype=jnp.float32),
            "captions": batch.caption_valid.sum(axis=-1).mean(dtype=jnp.float32),
        }
        return self.objective.total(terms, step), metrics

    def after_update(self, extra: Params, params: Params, step: jax.Array) -> Params:
        return self.target.update(extra, params["encoder"], self.momentum(step))

    def evaluation_encoder(self, params: Params, extra: Params) -> Params:
        return self.target.evaluation_params(extra, params["encoder"])

    def forward(
        self, params: Params, extra: Params, batch: JepaBatch, key: jax.Array | None = None
    ) -> tuple[dict[str, jax.Array], list[Reading]]:
        """The unweighted loss terms of a batch, and what each predictor layer read. `key` as in `predict`."""
        guess = self.predict(params, extra, batch, key)
        return self.terms(guess), guess.readings

    def terms(self, guess: Prediction) -> dict[str, jax.Array]:
        """The unweighted loss terms of a prediction, float32 scalars."""
        tokens, valid = token_validity(guess.batch), guess.batch.target_valid
        return loss_terms(guess.predicted, guess.targets, valid, tokens, guess.readings, guess.words, self.objective)

    def predict(self, params: Params, extra: Params, batch: JepaBatch, key: jax.Array | None = None) -> Prediction:
        """Context encoder, predictor and target on a batch. Without a `key`, positions are certain (no StoP noise)."""
        if self.joint_targets:
            batch = join_targets(batch)
        images = layers.normalise_images(batch.images)
        with jax.named_scope("target"):  # scopes are for profiles and for launch.benchmark
            given = self.target.chosen_params(extra, params["encoder"])
            targets_BxMxTxD = self.target_features(given, images, batch.target_indices, batch.target_valid)
        with jax.named_scope("context"):
            seen = layers.normalise_images(batch.context_images) if batch.context_images.size else images
            context_BxKxD, unnormalised_BxKxD = self._context(params, seen, batch)
        with jax.named_scope("text"):
            words = self._words(params, batch)
        with jax.named_scope("predictor"):
            predicted_BxMxTxD, readings = self.predictor.apply(
                {"params": params["predictor"]},
                context_BxKxD,
                *_places(batch),
                words,
                batch.corruption,
                rngs=None if key is None else {"positions": key},
            )
        return Prediction(batch, context_BxKxD, unnormalised_BxKxD, predicted_BxMxTxD, targets_BxMxTxD, words, readings)

    def _context(self, params: Params, images: jax.Array, batch: JepaBatch) -> tuple[jax.Array, jax.Array | None]:
        """Prediction.context and Prediction.unnormalised."""
        arguments = {"params": params["encoder"]}, images, batch.context_indices, batch.context_valid
        if not self.objective.anti_collapse:
            return self.encoder.apply(*arguments), None
        context_BxKxD, stored = self.encoder.apply(*arguments, mutable=[vit.STORED])
        return context_BxKxD, stored[vit.STORED][vit.UNNORMALISED][0]

    def target_features(
        self, params: Params, images_BxHxWx3: jax.Array, indices_BxMxT: jax.Array, valid_BxMxT: jax.Array
    ) -> jax.Array:
        """What is to be predicted, [B, M, T, D]: the target sees the whole image. No gradient flows back, unless the
        target learns. `params` are its `chosen_params`."""
        B, M, T = indices_BxMxT.shape
        features_BxNxD = self.target.features(params, images_BxHxWx3)
        chosen = layers.gather_tokens(features_BxNxD, indices_BxMxT.reshape(B, M * T))
        targets_BxMxTxD = self.target.standardise(chosen.reshape(B, M, T, -1), valid_BxMxT)
        return targets_BxMxTxD if self.target.learns else jax.lax.stop_gradient(targets_BxMxTxD)

    def _words(self, params: Params, batch: JepaBatch) -> Words | None:
        if self.text is None:
            return None
        vectors_BxCxSxE = self.text.apply({"params": params["text"]}, batch.caption_words, batch.word_valid)
        return Words(vectors_BxCxSxE, batch.word_valid, batch.caption_valid)

    @property
    def attends_to_words(self) -> bool:
        """Whether there is a cosine for each patch and word."""
        return self.predictor.conditioner.attends_to_words

    @property
    def heldout_variants(self) -> tuple[str, ...]:
        """True captions; each image with another's captions; none. A method that reads none has the first only."""
        return ("true",) if self.text is None else ("true", "shuffled", "absent")

    def heldout(self, params: Params, extra: Params, batch: JepaBatch, variant: jax.Array) -> Metrics:
        """The prediction loss, and what the regularisers act on in each predictor layer.

        The variant is traced, so that true, shuffled and absent captions share one compiled program.
        """
        shift, keep = jnp.where(variant == 1, 1, 0), variant != 2
        batch = batch._replace(
            caption_words=jnp.roll(batch.caption_words, shift, axis=0),
            word_valid=jnp.roll(batch.word_valid, shift, axis=0),
            caption_valid=jnp.roll(batch.caption_valid, shift, axis=0) & keep,
        )
        terms, readings = self.forward(params, extra, batch)
        batch = join_targets(batch) if self.joint_targets else batch
        words = batch.word_valid & batch.caption_valid[..., None]
        reading = reading_metrics(readings, token_validity(batch), words)
        return {"heldout/prediction": terms["prediction"]} | reading

    def heldout_summary(self, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """The numbers with true captions, and by how much other captions make the prediction worse."""
        metrics = dict(means["true"])
        for variant in self.heldout_variants[1:]:
            worse = means[variant]["heldout/prediction"]
            metrics[f"heldout/prediction_{variant}"] = worse
            metrics[f"text_worth/{variant}"] = worse / metrics["heldout/prediction"] - 1.0
        return metrics


def join_targets(batch: JepaBatch) -> JepaBatch:
    """All target blocks as one, [B, 1, M * T], so that they are predicted in one sequence and see each other.

    A patch of several blocks is predicted, and counts, once for each.
    """
    one = (len(batch.target_valid), 1, -1)
    return batch._replace(
        target_indices=batch.target_indices.reshape(one), target_valid=batch.target_valid.reshape(one)
    )


def token_validity(batch: JepaBatch) -> jax.Array:
    """Which tokens of the predictor's sequences are real: bool [B, M, K + T]."""
    B, M, _ = batch.target_valid.shape
    context_valid = jnp.broadcast_to(batch.context_valid[:, None], (B, M, batch.context_valid.shape[-1]))
    return jnp.concatenate([context_valid, batch.target_valid], axis=2)


def _places(batch: JepaBatch) -> tuple[jax.Array, ...]:
    """The predictor's index arguments."""
    return batch.context_indices, batch.context_valid, batch.target_indices, batch.target_valid
