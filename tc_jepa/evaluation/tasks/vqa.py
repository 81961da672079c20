"""vqa: a decoder on the frozen patches answers questions about each test image, greedily.

The decoder is that of captioning. An answer counts as VQAv2 counts it (answers.py): as equal, or by how many of the
people who were asked gave it. `other_image` is the accuracy where the decoder reads the features of another test image,
`text_only` that of a decoder that was trained without images. Chance is the most frequent answer of the train examples
to the same question, or to questions of its kind: what can be answered without looking.
"""

from collections import Counter, defaultdict

import numpy as np

from tc_jepa.errors import UserError
from tc_jepa.evaluation import writing
from tc_jepa.evaluation.answers import accuracy
from tc_jepa.evaluation.scores import mean_of_images
from tc_jepa.evaluation.task import Outcome, QUESTIONS, Score, SHOWN, Task, TaskInputs, train_and_test, VOCABULARY


def run(inputs: TaskInputs) -> Outcome:
    """Scores "vqa/all" and "vqa/KIND", with "other_image/vqa/..." and "text_only/vqa/..."."""
    asked = [(row, q) for row, index in enumerate(inputs.test.rows) for q in inputs.test.source.questions(int(index))]
    if not asked:
        raise UserError("vqa needs questions, and no test image has one; leave it out of --tasks")
    if not writing.questions(inputs):
        raise UserError("vqa needs questions to learn from, and no train image has one; leave it out of --tasks")
    rows = np.array([row for row, _ in asked])
    kinds = np.array([q.kind.replace("/", " or ") for _, q in asked])  # VQAv2's yes/no: a slash parts a score's names
    fitted, features = writing.fitted(inputs), inputs.features["test"]["patches"]
    prompts = [writing.QUESTION.format(q.text) for _, q in asked]
    answers = {
        "": fitted.write(features, rows, prompts, beams=1),
        "other_image/": fitted.write(features, (rows + 1) % len(inputs.test), prompts, beams=1),
        "text_only/": writing.text_only(inputs).write(writing.NO_IMAGE, np.zeros_like(rows), prompts, beams=1),
        "chance/": priors(inputs, [q for _, q in asked]),
    }
    right = {name: np.array([accuracy(a, q.answers) for a, (_, q) in zip(x, asked)]) for name, x in answers.items()}
    found, counts = Outcome(), inputs.test.counts
    for kind in ("all", *dict.fromkeys(kinds.tolist())):
        chosen = slice(None) if kind == "all" else kinds == kind
        found.scores[f"vqa/{kind}"] = mean_of_images(right[""][chosen], rows[chosen], counts)
        found.numbers[f"other_image/vqa/{kind}"] = float(right["other_image/"][chosen].mean())
        for name in ("text_only/", "chance/"):
            found.constants[f"{name}vqa/{kind}"] = float(right[name][chosen].mean())
    found.examples["vqa"] = [
        f"{inputs.test.source.file(int(inputs.test.rows[row]))}: {q.text}? {text}; true: {', '.join(set(q.answers))}"
        for (row, q), text in list(zip(asked, answers[""]))[:SHOWN]
    ]
    return found


TASK = Task(
    "vqa",
    run,
    needs=(QUESTIONS, VOCABULARY),
    features=train_and_test("patches"),
    scores=(Score("vqa", "Answers by a decoder on the patches.", "accuracy"),),
)


def priors(inputs: TaskInputs, questions: list) -> list[str]:
    """For each question the most frequent answer to it among the train examples; to its kind where it is new there."""
    by_text, by_kind = defaultdict(Counter), defaultdict(Counter)
    for index in inputs.train.rows:
        for question in inputs.train.source.questions(int(index)):
            by_text[question.text].update(question.answers)
            by_kind[question.kind].update(question.answers)
    found = (by_text[q.text] or by_kind[q.kind] for q in questions)
    return [counter.most_common(1)[0][0] if counter else "" for counter in found]
