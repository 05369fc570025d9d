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

from rwml_lightning.data.batches import Label
from rwml_lightning.data.branches import ExpertEpisode, ExpertGame, follow_expert
from rwml_lightning.data.chat_format import ChatFormat, fingerprint
from rwml_lightning.data.episodes import episode_name
from rwml_lightning.data.games import Game
from rwml_lightning.data.play import EpisodePlayer
from rwml_lightning.data.reflections import Reflection, write_reflections
from rwml_lightning.data.transitions import METADATA_KEY
from rwml_lightning.evaluation import is_solved
from rwml_lightning.schema import Sampling
from rwml_lightning.terminal import Terminal

log = logging.getLogger(__name__)
_SCHEMA = pa.schema(
    [("name", pa.string()), ("prompt_ids", pa.list_(pa.int32())), ("answer_ids", pa.list_(pa.int32()))]
)


@dataclass(frozen=True)
class Demonstrations:
    """What :class:`rwml_lightning.modules.PolicySFT` imitates.

    Args:
        path: Parquet file of token ids; collected when it is not there.
        source: ``expert`` follows the walkthrough that the environment gives, as far as it leads to success; ``reflection``
            does, and has a model write before each action why it is better than others; ``policy`` plays and keeps the
            episodes that were solved.
        episodes_per_game: For ``policy``: episodes of each game.
        max_steps: Turns after which an episode is cut off.
        temperature: For ``policy``: of sampling.
        batch_size: Games played at once.
        reflection: For ``reflection``: how it is written.
    """

    path: str
    source: Literal["expert", "reflection", "policy"] = "expert"
    episodes_per_game: int = 8
    max_steps: int = 30
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
            "data.demonstrations.source is 'reflection', but data.play.prompt.answer has no place for {thinking}"
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
            "data.demonstrations.episodes_per_game, or data.demonstrations.source 'expert'"
            + "".join(f"; {name}: {reason}" for name, reason in [*unsolved.items()][-1:])
        )
    write_labels(Path(wanted.path), labels, {**asdict(wanted), "tokenizer": fingerprint(player.chat)})
    console.print(f"{len(labels)} turns of {solved} solved episodes, of {len(games)} games: {wanted.path}")


def _own_successes(
    wanted: Demonstrations, player: EpisodePlayer, number: int, games: Sequence[Game], sampling: Sampling
) -> Iterator[list[Label]]:
    batch = player.collect(
        "demonstrations", number, games, wanted.episodes_per_game, sampling, wanted.max_steps
    )
    for group in batch.groups:
        for member in filter(is_solved, group.members):
            name = member.episode.episode_id
            yield [
                Label(f"{name}/{turn}", sample.prompt_ids, sample.completion.token_ids)
                for turn, sample in enumerate(member.samples)
            ]


def _follow_expert(
    wanted: Demonstrations, player: EpisodePlayer, games: Sequence[Game]
) -> tuple[list[ExpertEpisode], dict[str, str]]:
    named = [
        ExpertGame(f"expert-{episode_name(game.task, 0)}", game.task, game.seed, "train") for game in games
    ]
    num_alternatives = wanted.reflection.num_alternatives if wanted.source == "reflection" else 0
    return follow_expert(
        player.pool, player.environment, named, wanted.max_steps, player.seed, num_alternatives, wanted.max_steps
    )  # fmt: skip


def _expert_labels(
    wanted: Demonstrations, player: EpisodePlayer, episodes: Sequence[ExpertEpisode]
) -> Iterator[list[Label]]:
    """Labels of each episode, as far as they fit the context."""
    steps = [step for episode in episodes for step in episode.steps]
    thoughts = iter(
        write_reflections(
            wanted.reflection, steps, player.generator, player.chat, player.seed, player.context
        )
        if wanted.source == "reflection"
        else [""] * len(steps)
    )
    for episode in episodes:
        labels: list[Label] = []
        so_far: tuple[int, ...] | None = None
        for step in episode.steps:
            chat = player.chat
            prompt = player.prompt.encode(chat, step.view, so_far)
            action, thinking = chat.quote_action(step.transition.action), chat.quote(next(thoughts))
            answer = player.prompt.answer.format(action=action, thinking=thinking)
            answer_ids = chat.encode_label(prompt, answer)
            so_far = prompt + answer_ids
            if player.context is None or len(so_far) <= player.context:
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
            f"data.demonstrations.path: {path} is no file of demonstrations ({error})"
        ) from error
    if metadata.get("tokenizer") != fingerprint(chat):
        raise ValueError(
            f"data.demonstrations.path: {path} was written with another tokenizer or chat template; name another file, or remove it to collect "
            "anew"
        )
    return [Label(row["name"], tuple(row["prompt_ids"]), tuple(row["answer_ids"])) for row in rows]


def in_parts(labels: Sequence[Label], size: int) -> list[Sequence[Label]]:
    """Labels in their order, ``size`` a step: turns of an episode stay together, so that what they share is computed once."""
    return [labels[start : start + size] for start in range(0, len(labels), size)]
