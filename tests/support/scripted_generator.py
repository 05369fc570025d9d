"""A generator with answers from a function of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.schema import Completion, Sampling


class Scripted:
    """Generate the answers of a function of the prompt's text and the seed."""

    policy_version = 3
    max_model_len = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, answer: Callable[[str, int], str]) -> None:
        self.tokenizer, self.answer = tokenizer, answer
        self.batches: list[int] = []
        self.seeds: list[list[int]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        assert len(set(map(tuple, prompts))) == len(prompts)  # equal prompts are sent once
        self.batches.append(sum(map(len, seeds)))
        self.seeds += [[seed] for group in seeds for seed in group]
        return [
            [self._complete(self.tokenizer.decode(list(prompt)), seed) for seed in group]
            for prompt, group in zip(prompts, seeds, strict=True)
        ]

    def _complete(self, prompt: str, seed: int) -> Completion:
        ids = ChatFormat(self.tokenizer).encode_label((), self.answer(prompt, seed))
        return Completion(ids, (-1.0,) * len(ids), "stop", self.policy_version)
