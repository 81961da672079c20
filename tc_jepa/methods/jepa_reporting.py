"""What a JEPA logs, and how the report judges it: the effect of captions, the regularisers, masks that cut context."""

import math

from tc_jepa.methods.reporting import Answer, Diagnostic, Diagnostics, Question, Rows, Section, TRAINING

SHUFFLED = "text_worth/shuffled"
NO_EFFECT = 0.01  # of the held-out loss: below it, other images' captions predict as well as an image's own
HEALTHY_EFFECT = 0.02  # what a run that reads its captions should reach once the warm-up is over
DEAD_COSINES = 1e-4  # share of positive cosines: below it, the paper's regularisers act on next to nothing
UNIFORM = 0.98  # attention entropy as a fraction of its maximum: above it, all words are read alike
AGAINST_COLLAPSE = (
    "Lower optimizer.peak_learning_rate, give target_encoder.normalise=batch, which removes what all targets share, or "
    "a weight to objective.anti_collapse.participation."
)
MUCH_DROPPED = 1.0  # times the context patches that are kept

LOSSES = Section(
    TRAINING,
    "The loss of a JEPA does not measure quality: it falls as features collapse and may rise as they improve.",
    (
        Diagnostic("loss/prediction", "prediction", "Prediction loss, training"),
        *(
            Diagnostic(
                f"loss/{name}", name, "Regularisers", "Unweighted: before objective.sparsity and objective.consistency."
            )
            for name in ("sparsity", "consistency")
        ),
        Diagnostic("momentum", "momentum", "Momentum of the target encoder"),
    ),
)
HELD_OUT_LOSS = Diagnostic(
    "heldout/prediction", "own captions", "Held-out prediction loss", higher_is_better=False, compared=True
)
CAPTIONS = Section(
    "Are the captions used?",
    "The same held-out images with their own captions, with those of other images (shuffled), and with none (absent).",
    (
        HELD_OUT_LOSS._replace(meaning="A model that uses captions has its lowest loss with the images' own."),
        Diagnostic("heldout/prediction_shuffled", "shuffled", HELD_OUT_LOSS.chart),
        Diagnostic("heldout/prediction_absent", "absent", HELD_OUT_LOSS.chart),
        Diagnostic(
            SHUFFLED,
            "shuffled",
            "Worth of captions",
            "Relative rise of the held-out loss when captions are shuffled or absent.",
            higher_is_better=True,
            threshold=NO_EFFECT,
            warning="Captions have had no effect",
            advice="Captions of other images predict as well as an image's own, within 1 %.",
            compared=True,
            percent=True,
        ),
        Diagnostic("text_worth/absent", "absent", "Worth of captions"),
    ),
)
POSITIVE = Diagnostic(
    "layer_*/positive_cosines",
    "positive cosines",
    "Share of positive cosines",
    "The sparsity and consistency regularisers act on positive cosines only.",
    log_scale=True,
    higher_is_better=True,
    compared=True,
    percent=True,
)
DEAD = POSITIVE._replace(
    threshold=DEAD_COSINES,
    warning="The regularisers of a predictor layer have been dead",
    advice="Fewer than 1 in 10,000 cosines are positive, and only those count: lower objective.sparsity, or warm it up "
    "for longer.",
)


def diagnostics(*, reads_captions: bool, rectified: bool) -> Diagnostics:
    """Returns what a JEPA offers to the report.

    Args:
      reads_captions: whether the predictor has a conditioner.
      rectified: whether its regularisers are in use and act on rectified cosines, so that they can die.
    """
    if not reads_captions:
        held_out = Section("Held-out loss", "", (HELD_OUT_LOSS._replace(label="prediction"),))
        unread = Question(QUESTION, lambda rows: Answer("Captions are not read: model.conditioner=none, as in I-JEPA."))
        return Diagnostics((LOSSES, held_out), (unread,), (dropped_context,), AGAINST_COLLAPSE)
    regularisers = Section(
        "Are the regularisers alive?",
        "One line for each layer of the predictor that attends to words.",
        (
            DEAD if rectified else POSITIVE,
            Diagnostic(
                "layer_*/rectified_cosine",
                "rectified cosine",
                "Mean rectified cosine",
                "Mean of max(cosine, 0) over patches and words.",
                log_scale=True,
            ),
            Diagnostic(
                "layer_*/attention_entropy",
                "attention entropy",
                "Attention entropy",
                "1: all words of a caption are read alike. 0: one word is read.",
                higher_is_better=False,
                threshold=UNIFORM,
                warning="A predictor layer has attended to all words alike",
                compared=True,
                percent=True,
            ),
        ),
    )
    question = Question(QUESTION, caption_effect)
    checks = no_captions, dropped_context
    return Diagnostics((LOSSES, CAPTIONS, regularisers), (question,), checks, AGAINST_COLLAPSE)


QUESTION = "Does it use the captions?"


def caption_effect(looks: Rows) -> Answer:
    """Answers whether the predictor uses captions, by the last evaluation on held-out images."""
    worths = [(row["step"], row[SHUFFLED]) for row in looks if SHUFFLED in row and row["step"] > 0]
    if not worths:
        return Answer("Unknown: the run has not been evaluated on held-out images yet.")
    step, worth = worths[-1]
    if not math.isfinite(worth):
        return Answer(f"Unknown: the held-out prediction loss is not finite at step {step}.")
    effect = f"captions of other images change the held-out prediction loss by {100 * worth:+.1f} % at step {step}"
    if worth >= HEALTHY_EFFECT:
        # The loss is the predictor's: the encoder need not gain from captions that its predictor reads well.
        return Answer(
            f"The predictor uses them: {effect}. Whether the encoder is better for it shows only in comparison with a "
            "run without captions."
        )
    expected = f"(a healthy run reaches {100 * HEALTHY_EFFECT:+.0f} %)"
    if worth >= NO_EFFECT:
        return Answer(f"Barely: {effect} {expected}.")
    return Answer(f"No: {effect} {expected}.", good=False)


def no_captions(rows: Rows) -> str | None:
    """Warns where no logged batch had any caption."""
    counts = [row["captions"] for row in rows if "captions" in row]
    return "No image of any logged step had a caption." if counts and not any(counts) else None


def dropped_context(rows: Rows) -> str | None:
    """Warns where masks leave more context than the encoder is given."""
    kept, dropped = ([row[key] for row in rows if key in row] for key in ("context_tokens", "context_dropped"))
    if not kept or not dropped:
        return None
    kept, dropped = sum(kept) / len(kept), sum(dropped) / len(dropped)
    if dropped <= MUCH_DROPPED * kept:
        return None
    return (
        f"More context is dropped than used: on average masking.context_tokens keeps {kept:.0f} patches of an image "
        f"and drops {dropped:.0f}; raise it unless this is intended."
    )
