"""A quick test of general text and instruction following that needs no download."""

from __future__ import annotations

import math
from importlib.resources import files
from typing import ClassVar

import lightning as L
from typing_extensions import override

from rwml_callbacks.analysis import Analysis, Measurement, find
from rwml_callbacks.instruction_checks import CHECKS, passed_checks
from rwml_callbacks.weight_sync import WeightSync
from rwml_lightning.answers import read_reply
from rwml_lightning.data.datamodule import rollout_data
from rwml_lightning.models import context_tokens
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import Sampling


class CapabilityProbe(Analysis):
    """Measure perplexity on a few passages of general text, and the share of format instructions that answers follow.

    Answers are greedy. The test is too small to rank models. It shows that the model forgets something; :class:`Forgetting`
    measures what. Metrics: ``probe/perplexity`` (per token, so only comparable under the same tokenizer) and
    ``probe/instructions``.

    Args:
        every_n_steps: See :class:`Analysis`.
        max_tokens: Maximum number of tokens per answer.

    Raises:
        ValueError: The trainer has no :class:`WeightSync`. Without it the generator would answer with older weights.

    Example::

        >>> from rwml_callbacks import CapabilityProbe, WeightSync
        >>> trainer = L.Trainer(callbacks=[CapabilityProbe(every_n_steps=20), WeightSync()])
    """

    name: ClassVar[str] = "capability_probe"

    def __init__(self, every_n_steps: int | None = None, max_tokens: int = 64) -> None:
        super().__init__(every_n_steps)
        self.max_tokens = max_tokens

    @override
    def measure(self, trainer: L.Trainer, module: PolicyModule) -> Measurement:
        perplexity = text_perplexity(module)
        answers = self._answers(trainer, module)
        passed = passed_checks(answers)
        share = sum(passed.values()) / len(passed)
        metrics = {"probe/perplexity": perplexity, "probe/instructions": share}
        return Measurement(metrics, {"answers": answers, "followed": passed})

    def _answers(self, trainer: L.Trainer, module: PolicyModule) -> dict[str, str]:
        """Generate a greedy answer to each check; keys are names of checks."""
        sync = find(trainer, WeightSync)
        if sync is None:
            raise ValueError(
                "CapabilityProbe needs the callback WeightSync, because its answers come from the generator: add "
                "WeightSync to the trainer's callbacks"
            )
        sync.sync(module)
        policy = rollout_data(trainer).ask(module)
        prompts = [policy.chat.encode_user("", check.prompt) for check in CHECKS]
        sampling = Sampling(self.max_tokens, temperature=0.0)
        completions = policy.generator.generate(prompts, sampling, [[0]] * len(prompts))
        return {
            check.name: read_reply(policy.chat.decode(completion), policy.chat.in_thinking(prompt)).said
            for check, prompt, (completion,) in zip(CHECKS, prompts, completions, strict=True)
        }


def general_text() -> list[str]:
    """Read the passages of plain English on well-known facts."""
    return files("rwml_callbacks").joinpath("general_text.txt").read_text().strip().split("\n\n")


def text_perplexity(module: PolicyModule) -> float:
    """Return the exponential of the mean negative log-probability per token of :func:`general_text`, each passage alone."""
    logprobs: list[float] = []
    for passage in general_text():
        logprobs += module.score(module.tokenizer.encode(passage)[: context_tokens(module.model)])
    return math.exp(-sum(logprobs) / len(logprobs))
