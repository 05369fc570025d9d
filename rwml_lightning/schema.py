"""The words of the whole project: frozen records that travel between environment, generator, reward, trainer and run store.

Standard library only, so that a reader of the run store needs neither torch nor a trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
REWARD_TOLERANCE = 1e-5
"""Rewards of a group that differ by no more than this, times their magnitude where it is above 1, count as equal."""


def same_rewards(rewards: Iterable[float]) -> bool:
    """Whether rewards of a group are equal but for the noise of computing them, so that they say nothing of what is better.

    Cosines in float32 come out up to about 1e-6 apart for texts that an embedder reads as the same. Advantages are divided by
    the standard deviation, which would blow such noise up to the size of a real difference.
    """
    values = list(rewards)
    if not values:
        return True
    low, high = min(values), max(values)
    return high - low <= REWARD_TOLERANCE * max(1.0, abs(high))


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange with an environment: what the agent saw and what it did then.

    Args:
        observation: State text the action answered.
        action: Action text, as given to the environment.
        valid: Whether the environment accepted the action.
        reward: Reward the environment paid for this action.
        thinking: What the model wrote before its action, if anything.
    """

    observation: str
    action: str
    valid: bool = True
    reward: float = 0.0
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Episode:
    """One playthrough of one task.

    Args:
        episode_id: Unique within a run or transition file.
        environment: Name of the environment, for example ``alfworld``.
        game: Task id, as ``reset(options={"task": game})`` takes it.
        task: Task text, as the agent reads it.
        seed: Seed given to ``reset``.
        turns: What happened, in order.
        final_observation: State after the last action.
        success: Whether the task was solved; ``None`` where the environment does not say.
        truncated: Whether a limit ended the episode before the environment did.
        kind: What sort of task it was, for evaluation by kind; empty where the environment does not say.
        measures: Numbers that the environment gives with it, by name, for evaluation.
    """

    episode_id: str
    environment: str
    game: str
    task: str
    seed: int
    turns: tuple[Turn, ...]
    final_observation: str
    success: bool | None = None
    truncated: bool = False
    kind: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def episode_return(self) -> float:
        """Sum of rewards."""
        return sum(turn.reward for turn in self.turns)

    @property
    def solved(self) -> bool:
        """Whether it counts as a success; where the environment does not say, whether it was paid anything above 0."""
        return self.episode_return > 0 if self.success is None else self.success


@dataclass(frozen=True, slots=True)
class Transition:
    """One sample of world-model learning: <s_<=t, a_t, s_t+1> (arXiv 2602.05842, section 3).

    Args:
        transition_id: Unique within a transition file.
        environment: Name of the environment.
        game: Task id; the train/validation split is by this.
        task: Task text.
        history: Earlier turns, oldest first, at most H of them.
        observation: Current state text s_t.
        action: Action a_t that led to the next state.
        next_state: What the environment really answered, s_t+1.
        kind: What sort of step it was (``state_change``, ``navigation``, ...), for evaluation by kind.
        valid: Whether the environment accepted the action.
        knowable: Whether the next state follows from the history (False: it shows something never seen before).
        split: ``train`` or ``validation``.
    """

    transition_id: str
    environment: str
    game: str
    task: str
    history: tuple[Turn, ...]
    observation: str
    action: str
    next_state: str
    kind: str = "other"
    valid: bool = True
    knowable: bool = True
    split: Literal["train", "validation"] = "train"


@dataclass(frozen=True)
class Sampling:
    """How to sample a completion.

    Args:
        max_tokens: Most new tokens.
        temperature: 0 is greedy.
        top_p: Nucleus; 1 keeps every token.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a generator wrote after one prompt.

    Args:
        token_ids: Sampled tokens, the end token included when one was sampled.
        logprobs: Log-probability of each token under the distribution it was sampled from (after temperature and
            top-p), in nats; as long as ``token_ids``.
        finish_reason: ``stop`` (an end token) or ``length`` (``max_tokens``).
        policy_version: Version of the weights that wrote it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward says of one prediction.

    Args:
        reward: What the trainer maximises.
        similarity: How alike the reward finds predicted and real next state: their cosine in the embedding space, their
            overlap, a judge's verdict; ``None`` without a prediction or where the reward does not compare.
        well_formed: Whether the answer had a non-empty ``<next_state>``.
        parts: What the reward was made of, by name.
    """

    reward: float
    similarity: float | None
    well_formed: bool
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One member of a group: a completion, read and scored.

    Args:
        completion: Tokens as sampled.
        text: Decoded completion, for people; never encoded again.
        thinking: Text inside ``<think>``.
        next_state: Text inside ``<next_state>``; ``None`` when missing or empty.
        score: Reward and its parts.
        advantage: Group-relative advantage.
        member: Place in the group.
    """

    completion: Completion
    text: str
    thinking: str
    next_state: str | None
    score: Score
    advantage: float
    member: int


@dataclass(frozen=True, slots=True)
class Group:
    """All predictions for one transition, from one prompt.

    Args:
        transition: What really happened.
        prompt_ids: Prompt as the generator got it.
        prompt: The same as text, for people.
        predictions: Members in order.
    """

    transition: Transition
    prompt_ids: tuple[int, ...]
    prompt: str
    predictions: tuple[Prediction, ...]

    @property
    def zero_variance(self) -> bool:
        """Whether all rewards are the same, so that the group teaches nothing."""
        return same_rewards(prediction.score.reward for prediction in self.predictions)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """What one optimizer step is made from.

    Args:
        step: Position in training (rollout step), from which all seeds derive.
        policy_version: Version of the weights that wrote the completions.
        groups: One per prompt that survived.
        temperature: Temperature they were sampled at; the trainer's log-probabilities use the same.
        dropped_groups: How many prompts were lost to failures after retries.
        seconds: Wall seconds by phase (``generate``, ``reward``, ``env``).
    """

    step: int
    policy_version: int
    groups: tuple[Group, ...]
    temperature: float = 1.0
    dropped_groups: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Label:
    """A prompt and the answer to imitate.

    Args:
        name: Name of the sample, for errors.
        prompt_ids: Token ids of the prompt.
        answer_ids: Token ids of the answer, the end token included.
    """

    name: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """Labels of one optimizer step of supervised fine-tuning."""

    step: int
    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class ActionSample:
    """One turn of an episode, as the policy read and wrote it.

    Args:
        prompt_ids: Tokens that it read; those of earlier turns among them where the prompt is a conversation.
        completion: What it sampled.
        reward: What the turn is paid: the environment's reward, scaled, less the penalty for an invalid action.
        advantage: How much better than its peers the turn did.
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    reward: float
    advantage: float = 0.0


@dataclass(frozen=True, slots=True)
class Playthrough:
    """An episode, the samples that it was made of, one a turn, and what its actions did."""

    episode: Episode
    samples: tuple[ActionSample, ...]
    transitions: tuple[Transition, ...] = ()

    @property
    def total_reward(self) -> float:
        """Sum of what the turns were paid, which may differ from the environment's own return."""
        return sum(sample.reward for sample in self.samples)


@dataclass(frozen=True, slots=True)
class EpisodeGroup:
    """Episodes of the same game and seed, played by the same policy; ``game`` is as in :class:`Episode`."""

    game: str
    split: str
    members: tuple[Playthrough, ...]

    @property
    def zero_variance(self) -> bool:
        """Whether all were paid the same, so that their episode-level advantages are 0."""
        return same_rewards(member.total_reward for member in self.members)


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """What one optimizer step of the policy stage is made from; other fields as in :class:`RolloutBatch`.

    Args:
        labels: Next states that the episodes' own actions led to, for a loss that keeps the policy predicting.
    """

    step: int
    policy_version: int
    groups: tuple[EpisodeGroup, ...]
    temperature: float = 1.0
    dropped_groups: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[Label, ...] = ()
