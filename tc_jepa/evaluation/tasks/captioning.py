"""captioning: a decoder on the frozen patches writes a caption of each test image, by beam search.

As in the paper (arXiv 2605.03245, appendix C.3): one decoder learns captions and questions together, told apart by
prompts. The caption is compared with those of its image, by CIDEr-D and BLEU-4 (caption_scores.py); CIDEr-D is 0 to 10,
and shown times 100 in tables, as in papers. `other_image` is what CIDEr-D gives where the decoder reads the features of
another test image: what it knows without looking. Chance is the best of CONSTANTS captions of train images, written for
all test images. `text_only` is what a decoder writes that was trained without images.
"""

import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.evaluation import writing
from tc_jepa.evaluation.caption_scores import bleu, Cider
from tc_jepa.evaluation.scores import mean_of_images
from tc_jepa.evaluation.task import CAPTIONS, Outcome, Score, SHOWN, Task, TaskInputs, train_and_test, VOCABULARY

BEAMS = 4
CONSTANTS = 30


def run(inputs: TaskInputs) -> Outcome:
    """Scores "captioning/cider" and "captioning/bleu_4", with "other_image/captioning/cider" and "text_only/..."."""
    references = [inputs.test.source[int(row)].captions for row in inputs.test.rows]
    asked = np.flatnonzero([bool(own) for own in references])
    if not len(asked):
        raise UserError("captioning needs captions, and no test image has one; leave it out of --tasks")
    texts = [text.answer for text in writing.captions(inputs)]
    if not texts:
        raise UserError("captioning needs captions to learn from, and no train image has one; leave it out of --tasks")
    references = [references[row] for row in asked]
    fitted, features = writing.fitted(inputs), inputs.features["test"]["patches"]
    prompts = [writing.CAPTION] * len(asked)
    written = fitted.write(features, asked, prompts, BEAMS)
    elsewhere = fitted.write(features, np.roll(asked, 1), prompts, BEAMS)

    found, counts, cider = Outcome(), inputs.test.counts, Cider(references)
    found.scores["captioning/cider"] = mean_of_images(cider(written), asked, counts)
    found.scores["captioning/bleu_4"] = bleu(written, references, counts[asked])
    found.examples["captioning"] = [
        f"{inputs.test.source.file(int(inputs.test.rows[row]))}: {text!r}; one of its own: {own[0]!r}"
        for row, text, own in list(zip(asked, written, references))[:SHOWN]
    ]
    found.numbers["other_image/captioning/cider"] = float(cider(elsewhere).mean())
    tried = [texts[i] for i in np.linspace(0, len(texts) - 1, CONSTANTS).astype(int)]
    same = [[text] * len(asked) for text in dict.fromkeys(tried)]
    found.constants["chance/captioning/cider"] = max(cider(text).mean() for text in same)
    found.constants["chance/captioning/bleu_4"] = max(bleu(text, references, counts[asked]).value for text in same)
    (blind,) = writing.text_only(inputs).write(writing.NO_IMAGE, [0], [writing.CAPTION], BEAMS)
    found.constants["text_only/captioning/cider"] = float(cider([blind] * len(asked)).mean())
    found.constants["text_only/captioning/bleu_4"] = bleu([blind] * len(asked), references, counts[asked]).value
    return found


TASK = Task(
    "captioning",
    run,
    needs=(CAPTIONS, VOCABULARY),
    features=train_and_test("patches"),
    scores=(
        Score(
            "captioning",
            "Captions that a decoder writes from the patches; CIDEr-D times 100 may be above 100.",
            "n-grams",
        ),
    ),
)
