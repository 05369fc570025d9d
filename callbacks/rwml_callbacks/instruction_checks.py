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


def matches(pattern: str) -> Callable[[str], bool]:
    """Return a check for an answer that matches a pattern from its first to its last character."""
    return lambda answer: re.fullmatch(pattern, answer) is not None


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


def has_lines(*markers: str) -> Callable[[str], bool]:
    """Return a check for a list with one line for each marker, a pattern that the line begins with, and no other line."""

    def passes(answer: str) -> bool:
        lines = [line.strip() for line in answer.splitlines() if line.strip()]
        return len(lines) == len(markers) and all(
            re.match(rf"{marker}\s+\S", line) for marker, line in zip(markers, lines, strict=True)
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


def ends_with(words: str) -> Callable[[str], bool]:
    """Return a check for an answer that ends with exactly these words and has other text before them."""
    return lambda answer: answer.endswith(words) and answer != words


is_one_word = matches(r"[A-Za-z]+\.?")  # with or without a full stop
BULLET = "[-*•]"
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
        has_lines(BULLET, BULLET, BULLET),
    ),
    InstructionCheck(
        "numbers",
        "List three fruits as a numbered list. Write nothing else.",
        has_lines("1[.)]", "2[.)]", "3[.)]"),
    ),
    InstructionCheck("sentence", "What is a river? Answer in one sentence.", is_one_sentence),
    InstructionCheck("items", "Name four days of the week on one line, separated by commas.", has_items(4)),
    InstructionCheck("capitals", "Say hello. Write in capital letters only.", str.isupper),
    InstructionCheck("lower_case", "What is a river? Write in lower case letters only.", str.islower),
    InstructionCheck("number", "How many legs do two dogs have? Answer with digits only.", matches(r"\d+")),
    InstructionCheck(
        "ending",
        "Describe bread in one sentence. End your answer with the words THE END",
        ends_with("THE END"),
    ),
    InstructionCheck(
        "quotes", "Write a short greeting. Put double quotes around your whole answer.", matches(r'"[^"]+"')
    ),
)


def passed_checks(answers: dict[str, str]) -> dict[str, bool]:
    """Check the form of each answer, without its thinking. Keys of both mappings are names of checks."""
    return {check.name: check.passes(answers[check.name].split("</think>")[-1].strip()) for check in CHECKS}
