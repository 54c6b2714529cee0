"""The conversation templates of LLaVA and LISA, by name."""

from __future__ import annotations

from collections.abc import Sequence

# placeholders in the text for an image and for the features of a reference
IMAGE, REGION = (
    "<image>",
    "<region>",
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
SYSTEMS = {"plain": "", "llava_v1": HUMAN + " ", "vicuna_v1": HUMAN.replace("human", "user") + " "}
LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


def conversation(template: str, question: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """The prompt of a conversation, up to the start of the next answer.

    `history` holds earlier turns as (question, answer). `<image>` stands in the first turn. The
    strings are those of the released LLaVA and LISA code.
    """
    questions = [q for q, _ in history] + [question]
    answers = [a for _, a in history]
    if template == "llava_llama_2":
        opening = f"[INST] <<SYS>>\n{LLAMA_2}\n<</SYS>>\n\n{IMAGE}\n"
        turns = [opening + questions[0], *(f"<s>[INST] {q}" for q in questions[1:])]
        ends = [f" [/INST] {a} </s>" for a in answers] + [" [/INST]"]
        return "".join(turn + end for turn, end in zip(turns, ends, strict=True))
    if template == "chatml":  # the first <|im_start|> is the tokenizer's BOS
        opened = [f"user {IMAGE}{questions[0]}", *(f"<|im_start|>user {q}" for q in questions[1:])]
        turns = [f"{turn}<|im_end|><|im_start|>assistant" for turn in opened]
        ends = [f" {a}<|im_end|>" for a in answers] + [""]
        return "".join(turn + end for turn, end in zip(turns, ends, strict=True))
    turns = [f"USER: {IMAGE}\n{questions[0]}", *(f"USER: {q}" for q in questions[1:])]
    if template == "plain":
        turns[0] = f"{IMAGE}USER: {questions[0]}"
    ends = [f" ASSISTANT: {a}</s>" for a in answers] + [" ASSISTANT:"]
    text = "".join(turn + end for turn, end in zip(turns, ends, strict=True))
    return SYSTEMS[template] + text
