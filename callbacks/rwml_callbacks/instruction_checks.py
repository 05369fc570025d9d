"""Prompts whose answers can be checked by their form alone: what a chat model should not forget."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class InstructionCheck:
    """A prompt, and whether an answer has the form it asks for."""

    name: str
    prompt: str
    passes: Callable[[str], bool]


def is_one_word(answer: str) -> bool:
    """Whether the answer is a single word, a full stop after it allowed."""
    return re.fullmatch(r"[A-Za-z]+\.?", answer) is not None


def is_yes_or_no(answer: str) -> bool:
    """Whether the answer is yes or no and nothing else."""
    return answer.rstrip(".").lower() in ("yes", "no")


def is_json_with(*keys: str) -> Callable[[str], bool]:
    """A test for a JSON object with exactly these keys, a code fence around it allowed."""

    def passes(answer: str) -> bool:
        fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer, re.DOTALL)
        try:
            value = json.loads(fenced.group(1) if fenced else answer)
        except ValueError:
            return False
        return isinstance(value, dict) and set(value) == set(keys)

    return passes


def has_bullets(count: int) -> Callable[[str], bool]:
    """A test for so many bullet points and no other line."""

    def passes(answer: str) -> bool:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return len(lines) == count and all(re.match(r"[-*•]\s+\S", line) for line in lines)

    return passes


def has_numbers(count: int) -> Callable[[str], bool]:
    """A test for a numbered list of so many lines and no other line."""

    def passes(answer: str) -> bool:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return len(lines) == count and all(
            re.match(rf"{number}[.)]\s+\S", line) for number, line in enumerate(lines, start=1)
        )

    return passes


def is_one_sentence(answer: str) -> bool:
    """Whether the answer is one sentence of three words or more, from its capital to its full stop."""
    return re.fullmatch(r"[A-Z][^.!?<>\n]*\.", answer) is not None and len(answer.split()) >= 3


def has_items(count: int) -> Callable[[str], bool]:
    """A test for one line of so many items between commas."""

    def passes(answer: str) -> bool:
        items = [item.strip() for item in answer.split(",")]
        return "\n" not in answer and len(items) == count and all(items)

    return passes


def is_upper(answer: str) -> bool:
    """Whether there are letters, and all are capitals."""
    return answer.isupper()


def is_lower(answer: str) -> bool:
    """Whether there are letters, and none is a capital."""
    return answer.islower()


def is_number(answer: str) -> bool:
    """Whether the answer is digits alone."""
    return re.fullmatch(r"\d+", answer) is not None


def ends_with(words: str) -> Callable[[str], bool]:
    """A test for an answer that says something and ends with exactly these words."""
    return lambda answer: answer.endswith(words) and answer != words


def is_quoted(answer: str) -> bool:
    """Whether double quotes enclose the answer."""
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
    """Whether each answer, by name of its check, has the form asked for; thinking before it does not count."""
    return {check.name: check.passes(answers[check.name].split("</think>")[-1].strip()) for check in CHECKS}
