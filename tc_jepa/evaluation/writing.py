"""What captioning and vqa share: one decoder for both, trained on the captions and questions of the train examples."""

import weakref

import numpy as np

from tc_jepa.evaluation import decoder
from tc_jepa.evaluation.decoder import FittedDecoder, Text
from tc_jepa.evaluation.examples import Examples
from tc_jepa.evaluation.rows import Rows
from tc_jepa.evaluation.task import TaskInputs

CAPTION, QUESTION = "describe", "answer {}"  # prompts
NO_IMAGE = np.zeros((1, 1, 1), np.float32)  # features that say nothing, of the only image that there is
# Of the features of train examples, or of the examples, while they are there: a decoder is trained once for two tasks.
_fitted: weakref.WeakKeyDictionary[Rows | Examples, FittedDecoder] = weakref.WeakKeyDictionary()
_read: weakref.WeakKeyDictionary[Examples, tuple[list[Text], list[Text]]] = weakref.WeakKeyDictionary()


def fitted(inputs: TaskInputs) -> FittedDecoder:
    """The decoder of an encoder: trained on all captions, and on all questions with their most frequent answer."""
    features = inputs.features["train"]["patches"]
    return _once(features, inputs, features)


def text_only(inputs: TaskInputs) -> FittedDecoder:
    """A decoder that is trained on the same texts without images. It writes about the only row of NO_IMAGE."""
    return _once(inputs.train, inputs, NO_IMAGE)


def _once(key: Rows | Examples, inputs: TaskInputs, features: np.ndarray | Rows) -> FittedDecoder:
    if key not in _fitted:
        texts = captions(inputs) + questions(inputs)
        if features is NO_IMAGE:
            texts = [text._replace(image=0) for text in texts]
        _fitted[key] = decoder.fit(inputs.writing.size, features, texts, inputs.writing.tokenizer)
    return _fitted[key]


def captions(inputs: TaskInputs) -> list[Text]:
    """The captions of the train examples."""
    return _texts(inputs.train)[0]


def questions(inputs: TaskInputs) -> list[Text]:
    """The questions about the train examples, with their most frequent answers."""
    return _texts(inputs.train)[1]


def _texts(train: Examples) -> tuple[list[Text], list[Text]]:
    """Captions and questions. They are read once: a source may decode the image with a caption."""
    if train not in _read:
        said = [
            Text(row, CAPTION, caption)
            for row, index in enumerate(train.rows)
            for caption in train.source[int(index)].captions
            if caption.strip()
        ]
        asked = [
            Text(row, QUESTION.format(question.text), max(question.answers, key=question.answers.count))
            for row, index in enumerate(train.rows if train.source.has_questions else ())
            for question in train.source.questions(int(index))
        ]
        _read[train] = said, asked
    return _read[train]
