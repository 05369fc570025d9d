"""Prompts with answers that a program can check by their form. A chat model should not forget to follow them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class InstructionCheck:
    """A prompt and a function that checks whether an answer has the requested form."""

    name: str
    prompt: str
    passes: Callable[[str], bool]


def is_one_word(answer: str) -> bool:
    """Return whether the answer is a single word, with or without a full stop."""
    return re.fullmatch(r"[A-Za-z]+\.?", answer) is not None


def is_yes_or_no(answer: str) -> bool:
    """Return whether the answer is yes or no and nothing else."""
    return answer.rstrip(".").lower() in ("yes", "no")


def is_json_with(*keys: str) -> Callable[[str], bool]:
    """Return a check for a JSON object with exactly these keys, with or without a code fence."""

    def passes(answer: str) -> bool:
        fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
        try:
            value = json.loads(fenced.group(1) if fenced else answer)
        except ValueError:
            return False
        return isinstance(value, dict) and set(value) == set(keys)

    return passes


def has_bullets(count: int) -> Callable[[str], bool]:
    """Return a check for ``count`` bullet points and no other line."""

    def passes(answer: str) -> bool:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return len(lines) == count and all(re.match(r"[-*•]\s+\S", line) for line in lines)

    return passes


def has_numbers(count: int) -> Callable[[str], bool]:
    """Return a check for a numbered list of ``count`` lines and no other line."""

    def passes(answer: str) -> bool:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return len(lines) == count and all(
            re.match(rf"{number}[.)]\s+\S", line) for number, line in enumerate(lines, start=1)
        )

    return passes


def is_one_sentence(answer: str) -> bool:
    """Return whether the answer is one sentence of at least three words, with a capital and a full stop."""
    return re.fullmatch(r"[A-Z][^.!?<>\n]*\.", answer) is not None and len(answer.split()) >= 3


def has_items(count: int) -> Callable[[str], bool]:
    """Return a check for one line of ``count`` items separated by commas."""

    def passes(answer: str) -> bool:
        items = [item.strip() for item in answer.split(",")]
        return "\n" not in answer and len(items) == count and all(items)

    return passes


def is_upper(answer: str) -> bool:
    """Return whether the answer has letters and all of them are upper case."""
    return answer.isupper()


def is_lower(answer: str) -> bool:
    """Return whether the answer has letters and all of them are lower case."""
    return answer.islower()


def is_number(answer: str) -> bool:
    """Return whether the answer consists of digits only."""
    return re.fullmatch(r"\d+", answer) is not None


def ends_with(words: str) -> Callable[[str], bool]:
    """Return a check for an answer that ends with exactly these words and has other text before them."""
    return lambda answer: answer.endswith(words) and answer != words


def is_quoted(answer: str) -> bool:
    """Return whether the answer is enclosed in double quotes."""
    return re.fullmatch(r'"[^"]+"', answer) is not None


CHECKS = (
    InstructionCheck("one_word", "Which color does the sky have at noon? Answer with one word.", is_one_word),
    InstructionCheck("yes_no", "Is ice colder than steam? Answer only yes or no.", is_yes_or_no),
    InstructionCheck(
        "json",
        'Name a fruit and its color as a JSON object with the keys "fruit" and "color". Write nothing else.',
        is_json_with("fruit", "color"),
    ),
    InstructionCheck(
        "bullets",
        "List three animals as three bullet points that begin with -. Write nothing else.",
        has_bullets(3),
    ),
    InstructionCheck("numbers", "List three fruits as a numbered list. Write nothing else.", has_numbers(3)),
    InstructionCheck("sentence", "What is a river? Answer in one sentence.", is_one_sentence),
    InstructionCheck("items", "Name four days of the week on one line, separated by commas.", has_items(4)),
    InstructionCheck("capitals", "Say hello. Write in capital letters only.", is_upper),
    InstructionCheck("lower_case", "What is a river? Write in lower case letters only.", is_lower),
    InstructionCheck("number", "How many legs do two dogs have? Answer with digits only.", is_number),
    InstructionCheck(
        "ending",
        "Describe bread in one sentence. End your answer with the words THE END",
        ends_with("THE END"),
    ),
    InstructionCheck(
        "quotes", "Write a short greeting. Put double quotes around your whole answer.", is_quoted
    ),
)


def passed_checks(answers: dict[str, str]) -> dict[str, bool]:
    """Check the form of each answer, without its thinking. Keys of both mappings are names of checks."""
    return {check.name: check.passes(answers[check.name].split("</think>")[-1].strip()) for check in CHECKS}
