"""Episodes to imitate, turn by turn: an expert's, or the policy's own that were solved (RFT)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from rwml_lightning.data.batches import Label
from rwml_lightning.data.episodes import EpisodeState, episode_name
from rwml_lightning.data.games import Game
from rwml_lightning.data.play import EpisodePlayer
from rwml_lightning.data.prompts import encode_label
from rwml_lightning.data.transitions import METADATA_KEY
from rwml_lightning.envs import EnvironmentPool, Failure
from rwml_lightning.evaluation import is_solved
from rwml_lightning.schema import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
_SCHEMA = pa.schema(
    [("name", pa.string()), ("prompt_ids", pa.list_(pa.int32())), ("answer_ids", pa.list_(pa.int32()))]
)


@dataclass(frozen=True)
class Demonstrations:
    """What :class:`rwml_lightning.modules.PolicySFT` imitates.

    Args:
        path: Parquet file of token ids; collected when it is not there.
        source: ``expert`` follows the walkthrough that the environment gives, as far as it leads to success; ``policy`` plays
            and keeps the episodes that were solved.
        episodes_per_game: For ``policy``: episodes of each game.
        max_steps: Turns after which an episode is cut off.
        temperature: For ``policy``: of sampling.
        batch_size: Games played at once.
    """

    path: str
    source: Literal["expert", "policy"] = "expert"
    episodes_per_game: int = 8
    max_steps: int = 30
    temperature: float = 1.0
    batch_size: int = 16


def collect_demonstrations(
    wanted: Demonstrations, player: EpisodePlayer, games: Sequence[Game], max_tokens: int
) -> None:
    """Play, and write the turns of solved episodes as labels; the file appears when it is whole.

    Args:
        wanted: How.
        player: Environments, prompt, tokenizer, and for ``policy`` the generator.
        games: What to play.
        max_tokens: For ``policy``: most tokens a turn.

    Raises:
        ValueError: No episode was solved.
    """
    labels: list[Label] = []
    solved = 0
    chunks = [games[start : start + wanted.batch_size] for start in range(0, len(games), wanted.batch_size)]
    console = Console(stderr=True)
    for number, chunk in enumerate(
        track(chunks, f"demonstrations by {wanted.source}", console=console, disable=not console.is_terminal)
    ):
        if wanted.source == "expert":
            episodes = list(follow_walkthroughs(player, chunk, wanted.max_steps))
        else:
            sampling = Sampling(max_tokens, wanted.temperature)
            batch = player.collect(
                "demonstrations", number, chunk, wanted.episodes_per_game, sampling, wanted.max_steps
            )
            episodes = [
                [
                    Label(
                        f"{member.episode.episode_id}/{turn}", sample.prompt_ids, sample.completion.token_ids
                    )
                    for turn, sample in enumerate(member.samples)
                ]
                for group in batch.groups
                for member in group.members
                if is_solved(member)
            ]
        solved += len(episodes)
        labels += [label for episode in episodes for label in episode]
    if not labels:
        raise ValueError(
            f"none of {len(games)} games was solved, so there is nothing to imitate; take easier games, more "
            "data.demonstrations.episodes_per_game, or data.demonstrations.source 'expert'"
        )
    write_labels(Path(wanted.path), labels, {**asdict(wanted), "tokenizer": fingerprint(player.tokenizer)})
    console.print(f"{len(labels)} turns of {solved} solved episodes, of {len(games)} games: {wanted.path}")


def follow_walkthroughs(
    player: EpisodePlayer, games: Sequence[Game], max_steps: int
) -> Iterator[list[Label]]:
    """Labels of each game that its walkthrough solves in time; one that fails is left out and logged."""
    pool: EnvironmentPool = player.pool
    begun = pool.reset_many((slot, game.seed, game.task or None) for slot, game in enumerate(games))
    alive = [slot for slot, answer in begun.items() if not isinstance(answer, Failure)]
    walkthroughs = pool.call_many(alive, "walkthrough")
    for slot, game in enumerate(games):
        first, actions = begun[slot], walkthroughs.get(slot, ())
        if isinstance(first, Failure) or isinstance(actions, Failure):
            log.warning(
                "game %s: %s", game.task, first.error if isinstance(first, Failure) else actions.error
            )
            continue
        state = EpisodeState.begin(f"expert-{episode_name(game.task, 0)}", first)
        labels: list[Label] = []
        so_far: tuple[int, ...] | None = None
        won = False
        for action in actions[:max_steps]:
            prompt = player.prompt.encode(
                player.tokenizer, state.task, state.turns, state.observation, state.admissible, so_far
            )
            label = encode_label(player.tokenizer, player.prompt.answer.format(action=action))
            labels.append(Label(f"{state.episode_id}/{len(state.turns)}", prompt, label))
            so_far = prompt + label
            answer = pool.step_many({slot: action})[slot]
            if isinstance(answer, Failure):
                log.warning("game %s: %s", game.task, answer.error)
                break
            state.advance(action, answer, player.environment)
            won = bool(answer.info.get("won", answer.reward > 0))
            if answer.done:
                break
        if won:
            yield labels


def write_labels(path: Path, labels: Iterable[Label], metadata: dict[str, Any]) -> None:
    """Write labels; the file appears when it is whole."""
    rows = [asdict(label) for label in labels]
    schema = _SCHEMA.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")
    partial.replace(path)


def read_labels(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Label]:
    """Read labels.

    Raises:
        ValueError: The file is none of labels, or was written with another tokenizer.
    """
    try:
        table = pq.read_table(path)
        metadata = json.loads((table.schema.metadata or {})[METADATA_KEY])
        rows = table.select(_SCHEMA.names).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(
            f"data.demonstrations.path: {path} is no file of demonstrations ({error})"
        ) from error
    if metadata.get("tokenizer") != fingerprint(tokenizer):
        raise ValueError(
            f"data.demonstrations.path: {path} was written with another tokenizer; name another file, or remove it to collect "
            "anew"
        )
    return [Label(row["name"], tuple(row["prompt_ids"]), tuple(row["answer_ids"])) for row in rows]


def in_parts(labels: Sequence[Label], size: int) -> list[Sequence[Label]]:
    """Labels in their order, ``size`` a step: turns of an episode stay together, so that what they share is computed once."""
    return [labels[start : start + size] for start in range(0, len(labels), size)]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells tokenizers apart: vocabulary and chat template."""
    text = json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
