"""How LISA asks: in training, in one of a few ways; in validation, a sentence as it is and a phrase in a question."""

from __future__ import annotations

import numpy as np

SENTENCE = " {} Please output segmentation mask."
PHRASE = " What is {} in this image? Please output segmentation mask."
FORCED = "<SEG>."  # the answer that is put into the model's mouth
REFUSED = "<REJ>."  # the true answer where nothing fits

PHRASES = (
    "Can you segment the {} in this image?",
    "Please segment the {} in this image.",
    "What is {} in this image? Please respond with segmentation mask.",
    "What is {} in this image? Please output segmentation mask.",
)
SENTENCES = ("{} Please respond with segmentation mask.", "{} Please output segmentation mask.")
EXPLAIN = (
    "Please output segmentation mask and explain why.",
    "Please output segmentation mask and explain the reason.",
    "Please output segmentation mask and give some explanation.",
)
ANSWERS = (
    "It is {}.",
    "Sure, {}.",
    "Sure, it is {}.",
    "Sure, the segmentation result is {}.",
    "{}.",
)


def asked(text: str, is_sentence: bool) -> str:
    """The question of a text in validation, with the space in front that the reference's prompt has."""
    return (SENTENCE if is_sentence else PHRASE).format(text)


def taught(rng: np.random.Generator, text: str, is_sentence: bool = False, marker: str = "<SEG>") -> tuple[str, str]:
    """(question, answer) of a text in training; `marker` `<REJ>` where nothing fits."""
    questions = SENTENCES if is_sentence else PHRASES
    question = questions[rng.integers(len(questions))].format(text if is_sentence else text.lower())
    return question, ANSWERS[rng.integers(len(ANSWERS))].format(marker)
