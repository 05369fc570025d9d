"""Episodes to imitate, turn by turn: an expert's, with or without thoughts, or the policy's own that were solved (RFT)."""

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
from rwml_lightning.prompts.chat_format import ChatFormat, fingerprint
from rwml_lightning.schema import Label, Sampling
from rwml_lightning.terminal import Terminal

log = logging.getLogger(__name__)
_SCHEMA = pa.schema(
    [("name", pa.string()), ("prompt_ids", pa.list_(pa.int32())), ("answer_ids", pa.list_(pa.int32()))]
)


@dataclass(frozen=True)
class Demonstrations:
    """Episodes that :class:`rwml_lightning.modules.PolicySFT` imitates.

    Args:
        path: Parquet file of token ids; collected when it is not there.
        source: ``expert`` follows the walkthrough that the environment gives, as far as it leads to success; ``reflection``
            does, and has a model write before each action why it is better than others; ``policy`` plays and keeps the
            episodes that were solved.
        episodes_per_game: For ``policy``: episodes of each game.
        labels_per_step: Turns that an optimizer step learns from.
        max_turns: Turns after which an episode is cut off.
        temperature: For ``policy``: temperature of sampling.
        batch_size: Games played at once.
        reflection: For ``reflection``: how it is written.
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
    wanted: Demonstrations, player: EpisodePlayer, games: Sequence[Game], max_tokens: int
) -> None:
    """Play, and write the turns of solved episodes as labels; the file appears when it is whole.

    Args:
        wanted: How.
        player: Environments, prompt, chat format, and where the policy writes something the generator.
        games: What to play.
        max_tokens: For ``policy``: most tokens a turn.

    Raises:
        ValueError: No episode was solved, or reflections that the answer's template has no place for.
    """
    if wanted.source == "reflection" and "{thinking}" not in player.prompt.answer:
        raise ValueError(
            "data.episodes.demonstrations.source is 'reflection', but data.episodes.prompt.answer has no place for {thinking}"
        )
    labels: list[Label] = []
    unsolved: dict[str, str] = {}
    solved = 0
    chunks = [games[start : start + wanted.batch_size] for start in range(0, len(games), wanted.batch_size)]
    console = Terminal(stderr=True)
    for number, chunk in enumerate(
        track(chunks, f"demonstrations by {wanted.source}", console=console, disable=not console.is_terminal)
    ):
        if wanted.source == "policy":
            episodes = list(
                _own_successes(wanted, player, number, chunk, Sampling(max_tokens, wanted.temperature))
            )
        else:
            experts, missing = _follow_expert(wanted, player, chunk)
            unsolved |= missing
            episodes = list(_expert_labels(wanted, player, experts))
        solved += len(episodes)
        labels += [label for episode in episodes for label in episode]
    if not labels:
        raise ValueError(
            f"none of {len(games)} games was solved, so there is nothing to imitate; take easier games, more "
            "data.episodes.demonstrations.episodes_per_game, or data.episodes.demonstrations.source 'expert'"
            + "".join(f"; {name}: {reason}" for name, reason in [*unsolved.items()][-1:])
        )
    write_labels(Path(wanted.path), labels, {**asdict(wanted), "tokenizer": fingerprint(player.policy.chat)})
    console.print(f"{len(labels)} turns of {solved} solved episodes, of {len(games)} games: {wanted.path}")


def _own_successes(
    wanted: Demonstrations, player: EpisodePlayer, number: int, games: Sequence[Game], sampling: Sampling
) -> Iterator[list[Label]]:
    batch = player.collect(
        "demonstrations", number, games, wanted.episodes_per_game, sampling, wanted.max_turns
    )
    for group in batch.groups:
        for member in (one for one in group.members if one.episode.solved):
            name = member.episode.episode_id
            yield [
                Label(f"{name}/{turn}", sample.prompt_ids, sample.completion.token_ids)
                for turn, sample in enumerate(member.samples)
            ]


def _follow_expert(
    wanted: Demonstrations, player: EpisodePlayer, games: Sequence[Game]
) -> tuple[list[ExpertEpisode], dict[str, str]]:
    starts = [Start(f"expert-{episode_name(game.task, 0)}", game.task, game.seed) for game in games]
    num_alternatives = wanted.reflection.num_alternatives if wanted.source == "reflection" else 0
    return follow_expert(
        player.pool, starts, wanted.max_turns, player.seed, num_alternatives, history_turns=wanted.max_turns
    )


def _expert_labels(
    wanted: Demonstrations, player: EpisodePlayer, episodes: Sequence[ExpertEpisode]
) -> Iterator[list[Label]]:
    """Labels of each episode, as far as they fit the context."""
    steps = [step for episode in episodes for step in episode.steps]
    thoughts = iter(
        write_reflections(wanted.reflection, steps, player.policy, player.seed)
        if wanted.source == "reflection"
        else [""] * len(steps)
    )
    for episode in episodes:
        labels: list[Label] = []
        so_far: tuple[int, ...] | None = None
        for step in episode.steps:
            chat = player.policy.chat
            prompt = player.prompt.encode(chat, step.view, so_far)
            action, thinking = chat.quote_action(step.transition.action), chat.quote(next(thoughts))
            answer = player.prompt.answer.format(action=action, thinking=thinking)
            answer_ids = chat.encode_label(prompt, answer)
            so_far = prompt + answer_ids
            if player.policy.fits(len(so_far)):
                labels.append(Label(step.transition.transition_id, prompt, answer_ids))
            else:
                log.warning("%s does not fit the context and is left out", step.transition.transition_id)
        yield labels


def write_labels(path: Path, labels: Iterable[Label], metadata: dict[str, Any]) -> None:
    """Write labels; the file appears when it is whole."""
    rows = [asdict(label) for label in labels]
    schema = _SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")
    partial.replace(path)


def read_labels(path: Path, chat: ChatFormat) -> list[Label]:
    """Read labels.

    Raises:
        ValueError: The file is none of labels, or was written with another tokenizer or chat template.
    """
    try:
        table = pq.read_table(path)
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
        rows = table.select(_SCHEMA.names).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(
            f"data.episodes.demonstrations.path: {path} is no file of demonstrations ({error})"
        ) from error
    if metadata.get("tokenizer") != fingerprint(chat):
        raise ValueError(
            f"data.episodes.demonstrations.path: {path} was written with another tokenizer or chat template; name another file, or remove it to collect "
            "anew"
        )
    return [Label(row["name"], tuple(row["prompt_ids"]), tuple(row["answer_ids"])) for row in rows]
