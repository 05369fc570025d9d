"""A reward that is no number is never trained on, averaged or audited; whoever asks for it is told where it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rwml_callbacks.easy_samples.marks import mean_rewards
from transformers import PreTrainedTokenizerBase

from rwml_lightning.audit.measure import audit_reward
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.evaluation import measure_floors
from rwml_lightning.generation import HFGenerator
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.rewards import ExactMatchReward, WeightedReward
from rwml_lightning.rewards.base import NO_PREDICTION, score_checked
from rwml_lightning.rewards.controls import Control
from rwml_lightning.schema import Sampling, Score, Transition
from support.worlds import ACTION_PROMPT, make_transition, make_world

NAN, INFINITY = float("nan"), float("inf")
WORLD = make_world()


class Strange:
    """Gives one and the same score."""

    success_similarity = 0.5

    def __init__(self, score: Score | None = Score(NAN, 1.0, True)) -> None:  # noqa: B008 - frozen
        self.given = score

    def score(
        self, transitions: Sequence[Transition], predictions: Sequence[str | None]
    ) -> list[Score | None]:
        return [self.given for _ in predictions]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (Score(NAN, 1.0, True), "Strange gave the reward nan for transition t0"),
        (Score(-INFINITY, 1.0, True), "the reward -inf"),
        (Score(1.0, NAN, True), "the similarity nan"),
        (Score(1.0, 1.0, True, {"depth": INFINITY}), "the depth inf"),
    ],
)
def test_what_is_no_number_is_refused_by_name(score: Score, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_checked(Strange(score), [make_transition()], ["a"])


@pytest.mark.parametrize("score", [None, NO_PREDICTION, Score(-2.0, None, True), Score(1.0, -1.0, True)])
def test_every_other_score_passes(score: Score | None) -> None:
    assert score_checked(Strange(score), [make_transition()], ["a"]) == [score]


def test_a_score_too_few_is_refused() -> None:
    class Short(Strange):
        def score(self, *_: Any) -> list[Score | None]:
            return []

    with pytest.raises(ValueError, match="Short gave 0 scores for 1 predictions"):
        score_checked(Short(), [make_transition()], ["a"])


def test_a_sum_does_not_hide_it() -> None:
    weighted = WeightedReward({"a": ExactMatchReward(), "b": Strange()}, {"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="WeightedReward gave the reward nan"):
        score_checked(weighted, [make_transition()], ["a"])


USERS: dict[str, Callable[[], Any]] = {
    "filter": lambda: mean_rewards(Strange(), None, WORLD[:1], [["a"]]),
    "floors": lambda: measure_floors(WORLD[:1], Strange(), {"none": lambda _: "a"}),
    "audit": lambda: audit_reward(Strange(), WORLD[:1], WORLD, {}, 0),
    "control": lambda: Control("mismatched", 0, WORLD).apply(
        Strange(), ("wm_grpo", 0), WORLD[:1], [["a"]], [[NO_PREDICTION]]
    ),
}


@pytest.mark.parametrize("user", USERS)
def test_whoever_asks_a_reward_refuses_nan(user: str) -> None:
    with pytest.raises(
        ValueError, match=f"Strange gave the reward nan for transition {WORLD[0].transition_id}"
    ):
        USERS[user]()


def test_rollouts_refuse_nan(tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    generator = HFGenerator(str(tiny_model), device="cpu")
    rollouts = WorldModelRollouts(
        PolicyClient(generator, ChatFormat(tiny_tokenizer)), Strange(), ACTION_PROMPT, 0
    )
    with pytest.raises(ValueError, match="Strange gave the reward nan"):
        rollouts.collect("wm_grpo", 0, WORLD[:1], 2, Sampling(4))
