"""A reference implementation of GRPO, one sequence at a time, with all settings of the update, and prepared batches."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rwml_lightning.schema import (
    ActionSample,
    Completion,
    Episode,
    EpisodeBatch,
    EpisodeGroup,
    Group,
    Playthrough,
    Prediction,
    RolloutBatch,
    Score,
    Turn,
)
from support.worlds import make_transition

PROMPTS = ((5, 9, 14), (20, 21, 22, 23, 24, 25, 26), (5, 9, 30))
REWARDS = ((0.3, 0.0, 1.0), (0.0, 1.0, 0.1), (1.0, 1.0, 1.0))  # the last group has no variance
LENGTHS = ((4, 1, 6), (2, 7, 3), (5, 5, 2))


@dataclass(frozen=True)
class Text:
    """Data of one term of the loss; ``generated`` holds the generator's log-probabilities."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    generated: tuple[float, ...] = ()
    advantage: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Settings of the update, with the defaults of the module."""

    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    advantage_normalisation: str = "mean_std"
    loss_normalisation: str = "sequence"
    loss_constant: float | None = None
    kl_coefficient: float = 0.0
    kl_estimator: str = "k3"
    importance_cap: float | None = 2.0


def plain_logprobs(model: torch.nn.Module, text: Text, temperature: float = 1.0) -> torch.Tensor:
    """Compute the log-probability of each token of the answer, [tokens], from the full logits of this sequence."""
    ids = torch.tensor([text.prompt + text.answer])
    logprobs = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
    rows = torch.arange(len(text.prompt), ids.shape[1])
    return logprobs[rows - 1, ids[0, rows]]


@torch.no_grad()
def sample(
    model: torch.nn.Module, prompt: tuple[int, ...], length: int, generator: torch.Generator
) -> tuple[int, ...]:
    """Sample tokens at a high temperature: they differ, and are likely enough that one update can raise their probabilities."""
    ids = list(prompt)
    for _ in range(length):
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(torch.multinomial((logits / 4).softmax(-1), 1, generator=generator)))
    return tuple(ids[len(prompt) :])


def make_batch(model: torch.nn.Module, rewards: Sequence[Sequence[float]] = REWARDS) -> RolloutBatch:
    """Sample completions, and add noise to their log-probabilities, as from another engine."""
    generator = torch.Generator().manual_seed(1)
    groups = []
    for number, (prompt, row, lengths) in enumerate(zip(PROMPTS, rewards, LENGTHS, strict=True)):
        predictions = []
        for member, (reward, length) in enumerate(zip(row, lengths, strict=False)):
            ids = sample(model, prompt, length, generator)
            with torch.no_grad():
                logprobs = plain_logprobs(model, Text(prompt, ids))
            noise = torch.randn(length, generator=generator) * 0.5
            completion = Completion(ids, tuple((logprobs + noise).tolist()), "length", 0)
            score = Score(reward, reward, True)
            predictions.append(Prediction(completion, "", "", "x", score, 0.0, member))
        groups.append(Group(make_transition(number), prompt, "", tuple(predictions)))
    return RolloutBatch(0, 0, tuple(groups))


def with_version(batch: RolloutBatch, version: int) -> RolloutBatch:
    """Return the batch with another policy version in all completions."""

    def written(prediction: Prediction) -> Prediction:
        return replace(prediction, completion=replace(prediction.completion, policy_version=version))

    groups = tuple(replace(g, predictions=tuple(map(written, g.predictions))) for g in batch.groups)
    return replace(batch, policy_version=version, groups=groups)


def plain_advantages(rewards: torch.Tensor, normalisation: str) -> list[float]:
    """Compute the advantages of one group."""
    if normalisation == "leave_one_out":
        others = (rewards.sum() - rewards) / (len(rewards) - 1)
        return (rewards - others).tolist()
    centred = rewards - rewards.mean()
    return (centred / (rewards.std() + 1e-6) if normalisation == "mean_std" else centred).tolist()


def read_batch(batch: RolloutBatch, normalisation: str = "mean_std") -> list[Text]:
    """Return the samples of a batch with their advantages."""
    texts = []
    for group in batch.groups:
        rewards = torch.tensor([p.score.reward for p in group.predictions])
        for prediction, advantage in zip(
            group.predictions, plain_advantages(rewards, normalisation), strict=True
        ):
            completion = prediction.completion
            texts.append(Text(group.prompt_ids, completion.token_ids, completion.logprobs, advantage))
    return texts


def plain_loss(
    model: torch.nn.Module,
    texts: Sequence[Text],
    settings: Settings,
    old: Sequence[torch.Tensor] | None = None,
    reference: torch.nn.Module | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the loss of a step (arXiv 2402.03300, equation 3) with truncated importance weights, and its metrics.

    Args:
        model: Policy.
        texts: Samples of the step.
        settings: Settings of the module.
        old: Log-probabilities of each sample before the first update; ``None`` in the first update.
        reference: Reference policy of the KL penalty.
    """
    total = sum(len(text.answer) for text in texts)
    loss = torch.zeros(())
    seen: defaultdict[str, list[float]] = defaultdict(list)
    for row, text in enumerate(texts):
        if text.advantage == 0 and not settings.kl_coefficient:
            continue
        logprobs = plain_logprobs(model, text, settings.temperature)
        before = logprobs.detach() if old is None else old[row]
        ratio = (logprobs - before).exp()
        bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        terms = -torch.minimum(ratio * text.advantage, bounded * text.advantage)
        correction = (before - torch.tensor(text.generated)).exp()
        capped = (
            correction if settings.importance_cap is None else correction.clamp(max=settings.importance_cap)
        )
        if settings.importance_cap is not None:
            terms = terms * capped
        if settings.kl_coefficient:
            with torch.no_grad():
                target = plain_logprobs(reference or model, text, settings.temperature)
            difference = logprobs - target
            kl = {
                "k1": difference,
                "k2": difference**2 / 2,
                "k3": (-difference).exp() - 1 + difference,
            }[settings.kl_estimator]
            terms = terms + settings.kl_coefficient * kl
            seen["kl"] += kl.tolist()
        weight = {
            "sequence": 1 / (len(texts) * len(text.answer)),
            "token": 1 / total,
            "constant": 1 / (len(texts) * (settings.loss_constant or 1)),
        }[settings.loss_normalisation]
        loss = loss + weight * terms.sum()
        seen["clip_fraction"] += (bounded * text.advantage < ratio * text.advantage).float().tolist()
        seen["importance_ratio"] += correction.tolist()
        seen["importance_clipped"] += (capped < correction).float().tolist()
        seen["entropy"] += entropies(model, text, settings.temperature)
    means = {f"train/{name}": sum(values) / len(values) for name, values in seen.items()}
    return loss, {"train/loss": loss.item(), **means}


def entropies(model: torch.nn.Module, text: Text, temperature: float) -> list[float]:
    """Compute the entropy, in nats, of the distribution of each token of the answer."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([text.prompt + text.answer])).logits[0] / temperature
    drawn = torch.distributions.Categorical(logits=logits[len(text.prompt) - 1 : -1])
    return drawn.entropy().tolist()


def gradients_of(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the gradient of every trained weight, by name."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def with_weights(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """Return a copy of the model with other weights, given by name."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.copy_(weights[name])
    return changed


def make_episodes(model: torch.nn.Module, temperature: float = 1.0) -> EpisodeBatch:
    """Make two games of two episodes. Several episodes visit the states A and B with different returns."""
    generator = torch.Generator().manual_seed(2)

    def member(name: str, states: str, rewards: Sequence[float]) -> Playthrough:
        samples = []
        for turn, reward in enumerate(rewards):
            ids = tuple(torch.randint(2, 300, (2 + turn,), generator=generator).tolist())
            prompt = (5, 6, 7 + turn)
            with torch.no_grad():
                logprobs = plain_logprobs(model, Text(prompt, ids), temperature)
            samples.append(ActionSample(prompt, Completion(ids, tuple(logprobs.tolist()), "stop", 0), reward))
        turns = tuple(Turn(state, "act") for state in states)
        return Playthrough(Episode(name, "test", "g", "t", 0, turns, "end"), tuple(samples))

    groups = (
        EpisodeGroup("g", "train", (member("a", "AB", [0, 10]), member("b", "AAB", [0.5, 0, 1]))),
        EpisodeGroup("h", "train", (member("c", "A", [1]), member("d", "AA", [0, 1]))),  # equal episodes
    )
    return EpisodeBatch(0, 0, groups, temperature)
