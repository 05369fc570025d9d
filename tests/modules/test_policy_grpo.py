"""What a turn is worth, and that only what the policy wrote is learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rwml_lightning.functional import plain_logprobs
from rwml_lightning.modules import PolicyGRPO
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.schema import (
    ActionSample,
    Completion,
    Episode,
    EpisodeBatch,
    EpisodeGroup,
    Label,
    Playthrough,
    Turn,
)
from support.training import fit, make


def make_member(
    observations: str, rewards: list[float], prompts: list[tuple[int, ...]] | None = None, name: str = "e"
) -> Playthrough:
    turns = tuple(Turn(observation, "act") for observation in observations)
    prompts = prompts or [(5, 6, 7 + turn) for turn in range(len(turns))]
    samples = tuple(
        ActionSample(prompt, Completion((40 + turn, 41), (-1.0, -1.0), "stop", 0), reward)
        for turn, (prompt, reward) in enumerate(zip(prompts, rewards, strict=True))
    )
    return Playthrough(Episode(name, "test", "g", "t", 0, turns, "end"), samples)


def advantages(module: PolicyGRPO, *members: Playthrough) -> list[list[float]]:
    group = module.with_advantages(EpisodeGroup("g", "train", members))
    return [[sample.advantage for sample in member.samples] for member in group.members]


def test_every_turn_has_its_episodes_advantage(tiny_model: Path) -> None:
    # Returns 10 and -0.1: mean 4.95, sample standard deviation 7.141778.
    members = (make_member("AB", [0, 10]), make_member("AAC", [-0.1, 0, 0]))
    found = advantages(PolicyGRPO(model=str(tiny_model)), *members)
    assert found == [pytest.approx([0.707107] * 2, abs=1e-5), pytest.approx([-0.707107] * 3, abs=1e-5)]
    found = advantages(
        make(PolicyGRPO, model=str(tiny_model), advantage_normalisation="leave_one_out"), *members
    )
    assert found == [pytest.approx([10.1] * 2), pytest.approx([-10.1] * 3)]


def test_gigpo_adds_what_a_turn_was_worth_in_its_state(tiny_model: Path) -> None:
    # Returns by turn with discount 0.5: A 5, B 10; A -0.1, A 0. See test_step_advantages for A.
    module = PolicyGRPO(model=str(tiny_model), credit="gigpo", discount=0.5, step_advantage_weight=2.0)
    found = advantages(module, make_member("AB", [0, 10]), make_member("AA", [-0.1, 0]))
    assert found[0] == pytest.approx([0.707107 + 2 * 1.154531, 0.707107], abs=1e-4)
    assert found[1] == pytest.approx([-0.707107 - 2 * 0.594412, -0.707107 - 2 * 0.560119], abs=1e-4)


def test_a_group_that_did_equally_well_teaches_nothing_by_episode_and_something_by_step(
    tiny_model: Path,
) -> None:
    members = (make_member("AB", [0, 10]), make_member("AAB", [0, 0, 10]))
    assert advantages(PolicyGRPO(model=str(tiny_model)), *members) == [[0, 0], [0, 0, 0]]
    found = advantages(PolicyGRPO(model=str(tiny_model), credit="gigpo", discount=0.5), *members)
    assert found[0][0] > 0 > found[1][0]  # the same state, sooner solved


def test_impossible_discounts_are_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.discount is 0; it must be above 0"):
        PolicyGRPO(model=str(tiny_model), discount=0)


def conversation() -> EpisodeBatch:
    """Two episodes of one game whose turns are one growing sequence each."""
    first, reply = (5, 6, 7, 8), (9, 10, 11)
    longer = (*first, 40, 41, *reply)
    members = tuple(
        make_member("AB", [0, reward], [first, longer], name)
        for reward, name in ((1.0, "won"), (0.0, "lost"))
    )
    return EpisodeBatch(0, 0, (EpisodeGroup("g", "train", members),))


def test_the_environments_tokens_are_read_and_never_trained_on(tiny_model: Path) -> None:
    batch = conversation()
    module = make(
        PolicyGRPO, model=str(tiny_model), learning_rate=1e-9, importance_cap=None, max_grad_norm=1e9
    )
    (gradients,) = fit(module, [batch]).gradients
    # By hand: on-policy the gradient of the surrogate is that of -sum of advantage * mean log-probability of what was
    # sampled, over four sequences, from the plain padded batch.
    policy: Any = load_policy(str(tiny_model))
    group = PolicyGRPO(model=str(tiny_model)).with_advantages(batch.groups[0])
    samples = [sample for member in group.members for sample in member.samples]
    logprobs = plain_logprobs(
        policy, [s.prompt_ids + s.completion.token_ids for s in samples], [len(s.prompt_ids) for s in samples]
    ).logprobs
    weights = torch.tensor([s.advantage for s in samples]).repeat_interleave(2) / 2 / len(samples)
    (-(weights * logprobs).sum()).backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(gradients[f"{name}"], parameter.grad, atol=1e-6, rtol=1e-4)


def test_a_batch_without_turns_is_a_step_that_changes_nothing(tiny_model: Path) -> None:
    group = EpisodeGroup("g", "train", (make_member("", []), make_member("", [])))
    module = PolicyGRPO(model=str(tiny_model))
    steps = fit(module, [EpisodeBatch(0, 0, (group,))])
    assert steps.gradients == [{}]
    assert steps.metrics[0]["train/grad_norm"] == 0


def test_a_world_model_loss_adds_its_gradient_to_that_of_play(
    tiny_model: Path,
) -> None:
    labels = (Label("next", (5, 6, 7), (8, 9)), Label("other", (5, 6), (10,)))

    def gradients(weight: float, **batch: Any) -> dict[str, torch.Tensor]:
        module = make(
            PolicyGRPO,
            model=str(tiny_model),
            learning_rate=1e-9,
            max_grad_norm=1e9,
            world_model_weight=weight,
        )
        (found,) = fit(module, [replace(conversation(), labels=labels, **batch)]).gradients
        return found

    # By hand: the gradient of play, and 0.3 times that of the mean over three label tokens.
    policy = load_policy(str(tiny_model), "float32")
    logprobs, _ = plain_logprobs(policy, [[5, 6, 7, 8, 9], [5, 6, 10]], [3, 2])
    (-0.3 * logprobs.sum() / 3).backward()
    both, play = gradients(0.3), gradients(0.0)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(both[name] - play[name], parameter.grad, atol=1e-6, rtol=1e-3)
    alone = gradients(0.3, groups=())  # every group was lost: its labels are still learnt from
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(alone[name], parameter.grad, atol=1e-6, rtol=1e-3)


def test_a_negative_world_model_loss_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.world_model_weight is -1; it must not be negative"):
        PolicyGRPO(model=str(tiny_model), world_model_weight=-1)
