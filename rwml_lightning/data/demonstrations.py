"""Demonstrations to imitate: expert episodes with or without thoughts, or solved episodes of the policy itself (RFT)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import track

from rwml_lightning.data.reflections import Reflection, write_reflections
from rwml_lightning.data.transitions import METADATA_KEY
from rwml_lightning.episodes.expert import ExpertEpisode, follow_expert
from rwml_lightning.episodes.games import Game, episode_name
from rwml_lightning.episodes.loop import Start
from rwml_lightning.episodes.player import EpisodePlayer
from rwml_lightning.files import replacing
from rwml_lightning.prompts.chat_format import ChatFormat, fingerprint
from rwml_lightning.schema import Label, Sampling
from rwml_lightning.terminal import Terminal

log = logging.getLogger(__name__)
_SCHEMA = pa.schema(
    [("name", pa.string()), ("prompt_ids", pa.list_(pa.int32())), ("answer_ids", pa.list_(pa.int32()))]
)


@dataclass(frozen=True)
class Demonstrations:
    """Settings of the episodes that :class:`rwml_lightning.modules.PolicySFT` imitates.

    Args:
        path: Parquet file of token ids; it is collected if it does not exist.
        source: ``expert`` follows the environment's walkthroughs and keeps the solved episodes. ``reflection`` does the same,
            and a model explains before each action why it is better than others. ``policy`` plays and keeps the solved
            episodes.
        episodes_per_game: For ``policy``: number of episodes of each game.
        labels_per_step: Number of turns per optimizer step.
        max_turns: Number of turns after which an episode is cut off.
        temperature: For ``policy``: sampling temperature.
        batch_size: Number of games played at once.
        reflection: For ``reflection``: settings of the explanations.
    """

    path: str
    source: Literal["expert", "reflection", "policy"] = "expert"
    episodes_per_game: int = 8
    labels_per_step: int = 32
    max_turns: int = 30
    temperature: float = 1.0
    batch_size: int = 16
    reflection: Reflection = Reflection()  # noqa: RUF009 - frozen


def collect_demonstrations(
    settings: Demonstrations, player: EpisodePlayer, games: Sequence[Game], max_tokens: int
) -> None:
    """Play games and write the turns of solved episodes as labels. The file appears only when it is complete.

    Args:
        settings: Settings of the demonstrations.
        player: Player with the environments, prompt and chat format, and with the generator if the policy writes text.
        games: Games to play.
        max_tokens: For ``policy``: maximum number of tokens per turn.

    Raises:
        ValueError: No episode was solved, or the answer template has no field for reflections.
    """
    if settings.source == "reflection" and "{thinking}" not in player.prompt.answer:
        raise ValueError(
            "data.episodes.demonstrations.source is 'reflection', but data.episodes.prompt.answer has no field {thinking}; add it"
        )
    labels: list[Label] = []
    unsolved: dict[str, str] = {}
    solved = 0
    chunks = [
        games[start : start + settings.batch_size] for start in range(0, len(games), settings.batch_size)
    ]
    console = Terminal(stderr=True)
    for number, chunk in enumerate(
        track(
            chunks, f"demonstrations by {settings.source}", console=console, disable=not console.is_terminal
        )
    ):
        if settings.source == "policy":
            episodes = list(
                _policy_labels(settings, player, number, chunk, Sampling(max_tokens, settings.temperature))
            )
        else:
            experts, missing = _follow_expert(settings, player, chunk)
            unsolved |= missing
            episodes = list(_expert_labels(settings, player, experts))
        solved += len(episodes)
        labels += [label for episode in episodes for label in episode]
    if not labels:
        raise ValueError(
            f"none of {len(games)} games was solved, so there are no demonstrations; use easier games, raise "
            "data.episodes.demonstrations.episodes_per_game, or set data.episodes.demonstrations.source to 'expert'"
            + "".join(f"; {name}: {reason}" for name, reason in [*unsolved.items()][-1:])
        )
    write_labels(
        Path(settings.path), labels, {**asdict(settings), "tokenizer": fingerprint(player.policy.chat)}
    )
    console.print(
        f"{len(labels)} turns of {solved} solved episodes from {len(games)} games, written to {settings.path}"
    )


def _policy_labels(
    settings: Demonstrations, player: EpisodePlayer, number: int, games: Sequence[Game], sampling: Sampling
) -> Iterator[list[Label]]:
    batch = player.collect(
        "demonstrations", number, games, settings.episodes_per_game, sampling, settings.max_turns
    )
    for group in batch.groups:
        for member in (one for one in group.members if one.episode.solved):
            name = member.episode.episode_id
            yield [
                Label(f"{name}/{turn}", sample.prompt_ids, sample.completion.token_ids)
                for turn, sample in enumerate(member.samples)
            ]


def _follow_expert(
    settings: Demonstrations, player: EpisodePlayer, games: Sequence[Game]
) -> tuple[list[ExpertEpisode], dict[str, str]]:
    starts = [Start(f"expert-{episode_name(game.task, 0)}", game.task, game.seed) for game in games]
    num_alternatives = settings.reflection.num_alternatives if settings.source == "reflection" else 0
    return follow_expert(
        player.pool,
        starts,
        settings.max_turns,
        player.seed,
        num_alternatives,
        history_turns=settings.max_turns,
    )


def _expert_labels(
    settings: Demonstrations, player: EpisodePlayer, episodes: Sequence[ExpertEpisode]
) -> Iterator[list[Label]]:
    """Yield the labels of each episode, without turns that do not fit the context."""
    steps = [step for episode in episodes for step in episode.steps]
    thoughts = iter(
        write_reflections(settings.reflection, steps, player.policy, player.seed)
        if settings.source == "reflection"
        else [""] * len(steps)
    )
    for episode in episodes:
        labels: list[Label] = []
        previous_ids: tuple[int, ...] | None = None
        for step in episode.steps:
            chat = player.policy.chat
            prompt = player.prompt.encode(chat, step.view, previous_ids)
            action, thinking = chat.quote_action(step.transition.action), chat.quote(next(thoughts))
            answer = player.prompt.answer.format(action=action, thinking=thinking)
            answer_ids = chat.encode_label(prompt, answer)
            previous_ids = prompt + answer_ids
            if player.policy.fits(len(previous_ids)):
                labels.append(Label(step.transition.transition_id, prompt, answer_ids))
            else:
                log.warning("%s does not fit the context and is left out", step.transition.transition_id)
        yield labels


def write_labels(path: Path, labels: Iterable[Label], metadata: dict[str, Any]) -> None:
    """Write labels to a Parquet file. The file appears only when it is complete."""
    rows = [asdict(label) for label in labels]
    schema = _SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")


def read_labels(path: Path, chat: ChatFormat) -> list[Label]:
    """Read labels from a Parquet file.

    Raises:
        ValueError: The file has no labels, or it was written with another tokenizer or chat template.
    """
    try:
        table = pq.read_table(path)
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
        rows = table.select(_SCHEMA.names).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(
            f"data.episodes.demonstrations.path: {path} is not a file of demonstrations ({error})"
        ) from error
    if metadata.get("tokenizer") != fingerprint(chat):
        raise ValueError(
            f"data.episodes.demonstrations.path: {path} was written with another tokenizer or chat template; set another path, or "
            "remove the file to collect it again"
        )
    return [Label(row["name"], tuple(row["prompt_ids"]), tuple(row["answer_ids"])) for row in rows]
