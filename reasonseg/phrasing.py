"""How LISA's validation asks: a sentence as it is, a phrase in a question."""

from __future__ import annotations

SENTENCE = " {} Please output segmentation mask."
PHRASE = " What is {} in this image? Please output segmentation mask."
FORCED = "<SEG>."  # the answer that is put into the model's mouth
REFUSED = "<REJ>."  # the true answer where nothing fits


def asked(text: str, is_sentence: bool) -> str:
    """The question of a text, with the space in front that the reference's prompt has."""
    return (SENTENCE if is_sentence else PHRASE).format(text)
