"""Settings of labels and of play off their defaults, through the real module, against the loss written out plainly."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from rwml_lightning.modules import PolicyGRPO, PolicySFT, WorldModelSFT
from rwml_lightning.modules.base import NonFiniteError
from rwml_lightning.schema import (
    EpisodeBatch,
    Label,
    LabelledBatch,
)
from support.plain_grpo import (
    Settings,
    Text,
    gradients_of,
    make_episodes,
    plain_logprobs,
    plain_loss,
    with_weights,
)
from support.training import LABELS, assert_close, distance, fit, make, run

# Labels


def plain_label_loss(model: torch.nn.Module, labels: Sequence[Label], normalisation: str) -> torch.Tensor:
    rows = [-plain_logprobs(model, Text(label.prompt_ids, label.answer_ids)) for label in labels]
    if normalisation == "token":
        return torch.cat(rows).mean()
    return torch.stack([row.mean() for row in rows]).mean()


@pytest.mark.parametrize("kind", [WorldModelSFT, PolicySFT])
@pytest.mark.parametrize("arguments", [{}, {"loss_normalisation": "sequence"}])
def test_sft_at_every_setting(
    tiny_model: Path, model: LlamaForCausalLM, kind: type[Any], arguments: dict[str, Any]
) -> None:
    module = make(kind, model=str(tiny_model), learning_rate=1e-2, max_grad_norm=1e9, **arguments)
    steps, weights = run(module, [LabelledBatch(0, LABELS), LabelledBatch(1, LABELS[:2])])
    normalisation = arguments.get("loss_normalisation", "token")
    other = {"token": "sequence", "sequence": "token"}[normalisation]
    for step, labels in enumerate((LABELS, LABELS[:2])):
        policy = with_weights(model, weights[step])
        loss = plain_label_loss(policy, labels, normalisation)
        gradients = gradients_of(policy, loss)
        assert_close(steps.gradients[step], gradients)
        assert distance(gradients, gradients_of(policy, plain_label_loss(policy, labels, other))) > 1e-3
        metrics = steps.metrics[step]
        norm = torch.stack([g.norm() for g in gradients.values()]).norm().item()
        assert metrics["train/loss"] == pytest.approx(loss.item(), abs=1e-5)
        assert metrics["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert metrics["train/trained_tokens"] == sum(len(label.answer_ids) for label in labels)


def test_labels_behind_a_broken_gradient_are_named(tiny_model: Path) -> None:
    module = WorldModelSFT(model=str(tiny_model))
    module.configure_model()
    module.policy.model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match=r"the gradient is (inf|nan); nothing was updated.* a, b, c"):
        fit(module, [LabelledBatch(0, LABELS)])


# Play


def plain_turns(batch: EpisodeBatch, discount: float, step_weight: float) -> list[Text]:
    """Every turn with its advantage: its episode's, and ``step_weight`` times that among turns in the same state."""

    def relative(values: Sequence[float]) -> list[float]:
        """Against the mean, by the standard deviation; 0 where nothing differs."""
        numbers = torch.tensor(values)
        if len(set(values)) == 1:
            return [0.0] * len(values)
        return ((numbers - numbers.mean()) / (numbers.std() + 1e-6)).tolist()

    texts = []
    for group in batch.groups:
        episode = relative([sum(s.reward for s in m.samples) for m in group.members])
        rows = []
        for m, member in enumerate(group.members):
            for t, sample in enumerate(member.samples):
                rest = [s.reward for s in member.samples[t:]]
                discounted = sum(discount**k * reward for k, reward in enumerate(rest))
                rows.append((member.episode.turns[t].observation, discounted, episode[m], sample))
        for state, discounted, worth, sample in rows:
            peers = [d for s, d, _, _ in rows if s == state]
            beside = relative(peers)[peers.index(discounted)]
            completion = sample.completion
            texts.append(
                Text(
                    sample.prompt_ids,
                    completion.token_ids,
                    completion.logprobs,
                    worth + step_weight * beside,
                )
            )
    return texts


@pytest.mark.parametrize(
    ("arguments", "discount", "step_weight", "temperature"),
    [
        ({}, 0.95, 0.0, 1.0),
        ({}, 0.95, 0.0, 0.7),
        ({"credit": "gigpo"}, 0.95, 1.0, 1.0),
        ({"credit": "gigpo", "discount": 0.5}, 0.5, 1.0, 1.0),
        ({"credit": "gigpo", "step_advantage_weight": 0.3}, 0.95, 0.3, 1.0),
    ],
)
def test_play_at_every_setting(
    tiny_model: Path,
    model: LlamaForCausalLM,
    arguments: dict[str, Any],
    discount: float,
    step_weight: float,
    temperature: float,
) -> None:
    batch = make_episodes(model, temperature)
    module = make(PolicyGRPO, model=str(tiny_model), max_grad_norm=1e9, **arguments)
    steps = fit(module, [batch])
    policy = copy.deepcopy(model)
    texts = plain_turns(batch, discount, step_weight)
    loss, metrics = plain_loss(policy, texts, Settings(temperature=temperature))
    assert_close(steps.gradients[0], gradients_of(policy, loss))
    output = steps.outputs[0]
    assert steps.metrics[0]["train/loss"] == pytest.approx(metrics["train/loss"], abs=1e-5)
    given = [s.advantage for g in output["batch"].groups for m in g.members for s in m.samples]
    assert given == pytest.approx([text.advantage for text in texts], abs=1e-4)


@pytest.mark.parametrize(("weight", "count"), [(0.3, 3), (0.6, 2)])
def test_next_states_of_the_steps_own_actions_are_learnt_beside(
    tiny_model: Path, model: LlamaForCausalLM, weight: float, count: int
) -> None:
    batch = replace(make_episodes(model), labels=LABELS[:count])
    module = make(
        PolicyGRPO,
        model=str(tiny_model),
        max_grad_norm=1e9,
        learning_rate=1e-2,
        num_iterations=2,
        world_model_weight=weight,
    )
    steps, weights = run(module, [batch])
    texts = plain_turns(batch, 0.95, 0.0)
    with torch.no_grad():
        old = [plain_logprobs(model, text) for text in texts]
    for before, found in zip(weights[:-1], steps.gradients, strict=True):
        policy = with_weights(model, before)
        play, _ = plain_loss(policy, texts, Settings(), old)
        labels = plain_label_loss(policy, LABELS[:count], "token")
        assert_close(found, gradients_of(policy, play + weight * labels))
    metrics = steps.metrics[0]
    assert metrics["train/label_loss"] == pytest.approx(labels.item(), abs=1e-5)
    assert metrics["train/loss"] == pytest.approx(play.item(), abs=1e-5)
