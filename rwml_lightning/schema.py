"""The shared records of the project, as frozen dataclasses, for environments, generators, rewards, trainer and run store.

The module uses only the standard library, so that a reader of the run store needs neither torch nor a trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
REWARD_TOLERANCE = 1e-5
"""Rewards of a group count as equal if they differ by at most this value times max(1, magnitude of the rewards)."""


def same_rewards(rewards: Iterable[float]) -> bool:
    """Return whether the rewards of a group are equal up to numerical noise, so that they rank no member above another.

    Cosines in float32 differ by up to about 1e-6 for texts that an embedder treats as equal. Advantages are divided by the
    standard deviation, which would scale such noise up to the size of a real difference.
    """
    values = list(rewards)
    if not values:
        return True
    low, high = min(values), max(values)
    return high - low <= REWARD_TOLERANCE * max(1.0, abs(high))


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of an episode: an observation and the action that followed it.

    Args:
        observation: State text before the action.
        action: Action text, as passed to the environment.
        valid: Whether the environment accepted the action.
        reward: Reward of the environment for this action.
        thinking: Text that the model wrote before its action, if any.
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
        episode_id: Id that is unique within a run or transition file.
        environment: Name of the environment, for example ``alfworld``.
        game: Task id, as ``reset(options={"task": game})`` takes it.
        task: Task text that the agent reads.
        seed: Seed passed to ``reset``.
        turns: Turns in order.
        final_observation: State text after the last action.
        success: Whether the task was solved; ``None`` if the environment does not report it.
        truncated: Whether a limit ended the episode before the environment did.
        kind: Kind of task, for evaluation by kind; empty if the environment does not report it.
        measures: Measures from the environment by name, for evaluation.
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
        """Whether the episode was solved. If the environment does not report success, whether its return is above 0."""
        return self.episode_return > 0 if self.success is None else self.success


@dataclass(frozen=True, slots=True)
class Transition:
    """One sample of world-model learning: <s_<=t, a_t, s_t+1> (arXiv 2602.05842, section 3).

    Args:
        transition_id: Id that is unique within a transition file.
        environment: Name of the environment.
        game: Task id, by which transitions are split into training and validation.
        task: Task text.
        history: Earlier turns, oldest first, at most H of them.
        observation: Current state text s_t.
        action: Action a_t that led to the next state.
        next_state: Real next state text s_t+1.
        kind: Kind of step (``state_change``, ``navigation``, ...), for evaluation by kind.
        valid: Whether the environment accepted the action.
        knowable: Whether the next state follows from the history (False: it shows something that was never observed before).
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
    """Sampling parameters of a completion.

    Args:
        max_tokens: Maximum number of new tokens.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Probability mass of nucleus sampling; 1 keeps every token.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion that a generator sampled after one prompt.

    Args:
        token_ids: Sampled tokens, including the end token if one was sampled.
        logprobs: Log-probability of each token under the distribution it was sampled from (after temperature and
            top-p), in nats; same length as ``token_ids``.
        finish_reason: ``stop`` (an end token) or ``length`` (``max_tokens``).
        policy_version: Version of the weights that sampled it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Score:
    """Score of one prediction by a reward.

    Args:
        reward: Reward that the trainer maximises.
        similarity: Similarity of predicted and real next state: their cosine in the embedding space, their overlap, or a
            judge's verdict; ``None`` without a prediction or if the reward does not compare texts.
        well_formed: Whether the completion has a non-empty ``<next_state>``.
        parts: Parts of the reward by name.
    """

    reward: float
    similarity: float | None
    well_formed: bool
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One member of a group: a parsed and scored completion.

    Args:
        completion: Completion as sampled.
        text: Decoded completion for display; never encoded again.
        thinking: Text inside ``<think>``.
        next_state: Text inside ``<next_state>``; ``None`` if missing or empty.
        score: Reward and its parts.
        advantage: Group-relative advantage.
        member: Position in the group.
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
        transition: Transition with the real next state.
        prompt_ids: Token ids of the prompt.
        prompt: User message of the prompt as text, for display.
        predictions: Members in order.
    """

    transition: Transition
    prompt_ids: tuple[int, ...]
    prompt: str
    predictions: tuple[Prediction, ...]

    @property
    def zero_variance(self) -> bool:
        """Whether all rewards are equal, so that the group gives no training signal."""
        return same_rewards(prediction.score.reward for prediction in self.predictions)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Rollouts of one optimizer step.

    Args:
        step: Position in training (rollout step), from which all seeds derive.
        policy_version: Version of the weights that sampled the completions.
        groups: Groups, one per prompt that was not dropped.
        temperature: Sampling temperature; the trainer's log-probabilities use the same.
        dropped: Name of each prompt that was lost to failures after retries, and the reason.
        seconds: Wall-clock seconds by phase (``generate``, ``reward``, ``env``).
    """

    step: int
    policy_version: int
    groups: tuple[Group, ...]
    temperature: float = 1.0
    dropped: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Label:
    """A prompt and the answer to imitate.

    Args:
        name: Name of the sample, for error messages.
        prompt_ids: Token ids of the prompt.
        answer_ids: Token ids of the answer, including the end token.
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
    """Prompt and completion of the policy in one turn of an episode.

    Args:
        prompt_ids: Token ids of the prompt; in a conversation they include the tokens of earlier turns.
        completion: Completion that the policy sampled.
        reward: Reward of the turn: the environment's scaled reward minus the penalty for an invalid action.
        advantage: Group-relative advantage of the turn.
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    reward: float
    advantage: float = 0.0


@dataclass(frozen=True, slots=True)
class Playthrough:
    """An episode with its samples, one per turn, and the transitions of its actions."""

    episode: Episode
    samples: tuple[ActionSample, ...]
    transitions: tuple[Transition, ...] = ()

    @property
    def total_reward(self) -> float:
        """Sum of the rewards of the turns, which may differ from the environment's return."""
        return sum(sample.reward for sample in self.samples)


@dataclass(frozen=True, slots=True)
class EpisodeGroup:
    """Episodes of the same game and seed, played by the same policy; ``game`` is as in :class:`Episode`."""

    game: str
    split: str
    members: tuple[Playthrough, ...]

    @property
    def zero_variance(self) -> bool:
        """Whether all members have the same total reward, so that their episode-level advantages are 0."""
        return same_rewards(member.total_reward for member in self.members)


@dataclass(frozen=True, slots=True)
class EpisodeBatch:
    """Rollouts of one optimizer step of the policy stage; other fields as in :class:`RolloutBatch`.

    Args:
        labels: Next-state labels from the episodes' own actions, for a loss that keeps the policy's ability to predict.
    """

    step: int
    policy_version: int
    groups: tuple[EpisodeGroup, ...]
    temperature: float = 1.0
    dropped: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[Label, ...] = ()
