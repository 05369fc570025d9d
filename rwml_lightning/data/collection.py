"""Collection of transitions: an actor plays episodes, and their transitions are written to a Parquet file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rwml_lightning.data.transitions import (
    is_sample,
    read_metadata,
    read_transitions,
    split_of_game,
    write_transitions,
)
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec, Failure
from rwml_lightning.episodes.actors import ModelActor, RandomActor
from rwml_lightning.episodes.expert import follow_expert
from rwml_lightning.episodes.games import episode_name, episode_seed, is_validation, list_tasks
from rwml_lightning.episodes.loop import Actor, Start, play
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import fingerprint
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Episode, Sampling, Transition
from rwml_lightning.seeds import derive_seed
from rwml_lightning.terminal import Terminal

Record = Callable[[int, int, list[Episode]], None]
"""Called after each batch of episodes with (number of the batch from 1, number of batches, episodes of the batch)."""


@dataclass(frozen=True)
class Collection:
    """Settings of the collection of transitions.

    Args:
        behaviour: ``model`` (the policy at temperature 1, as in the paper), ``random`` (for models too weak to act), or
            ``branches`` (the stored walkthroughs, and the results of some other actions at each of their steps; for
            implicit world modelling, arXiv 2510.08558).
        episodes_per_game: Number of episodes of each game.
        max_turns: Maximum number of turns of an episode.
        expert_share: For ``random``: share of stretches of turns that follow the stored walkthrough.
        invalid_share: For ``random``: share of turns with an action that is not admissible at that turn.
        num_alternatives: For ``branches``: number of other actions at each turn.
        max_new_tokens: For ``model``: maximum number of tokens of thinking and action.
        prompt: For ``model``: prompt for an action.
        history_turns: Number of earlier turns stored with each transition; prompts may show fewer.
        validation_share: Share of games for validation if the environment has no validation split (paper: 10 %).
        splits: Splits of the environment to collect; ``null`` collects all.
        num_environments: Number of episodes played at once.
        num_workers: Number of processes that step the environments.
        step_timeout_s: Seconds after which a step counts as hung.
        max_dropped_share: Largest share of episodes that may be lost to environment failures before the run stops.
    """

    behaviour: Literal["model", "random", "branches"] = "model"
    episodes_per_game: int = 1
    max_turns: int = 30
    expert_share: float = 0.0
    invalid_share: float = 0.0
    num_alternatives: int = 3
    max_new_tokens: int = 256
    prompt: ActionPrompt = ActionPrompt()  # noqa: RUF009 - frozen
    history_turns: int = 8
    validation_share: float = 0.1
    splits: list[str] | None = None
    num_environments: int = 16
    num_workers: int = 2
    step_timeout_s: float = 60.0
    max_dropped_share: float = 0.1


def collect(
    path: Path,
    spec: EnvironmentSpec,
    collection: Collection,
    seed: int,
    policy: Callable[[], PolicyClient],
    record: Record | None = None,
) -> None:
    """Collect transitions into ``path``. An interrupted collection continues where it stopped.

    Finished batches of episodes are stored in ``<path>.parts`` until all are finished. A complete file is not changed.

    Args:
        path: Parquet file to write.
        spec: Environment. Its games are generated first.
        collection: Settings of the collection.
        seed: Seed of the run. The actions of an episode depend on it and on the name of the episode.
        policy: Function that returns the policy; called only for ``behaviour: model``.
        record: Function called after each batch of episodes.

    Raises:
        ValueError: The settings do not fit the environment, or the parts were collected with other settings.
        RuntimeError: Too many episodes were lost to environment failures; the message gives the last reason.
    """
    if path.exists():
        return
    spec.prepare(seed)
    starts = list(list_starts(spec, collection, seed))
    client = None
    if collection.behaviour == "model":
        client = policy()
        collection.prompt.check(client.chat)
    settings = collection_settings(spec, collection, seed, client)
    names = "\n".join(f"{start.split} {start.episode_id}" for start in starts)
    parts = path.with_name(path.name + ".parts")
    check_settings(parts, {**settings, "episodes": hashlib.sha256(names.encode()).hexdigest()})
    size = collection.num_environments
    chunks = [starts[i : i + size] for i in range(0, len(starts), size)]
    dropped: dict[str, str] = {}
    console = Terminal(stderr=True)
    columns = (
        TextColumn("collecting episodes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with (
        EnvironmentPool(spec, collection.num_workers, collection.step_timeout_s) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("", total=len(starts))
        for number, chunk in enumerate(chunks):
            part = parts / f"{number:05d}.parquet"
            if not part.exists():
                episodes, transitions, lost = play_chunk(pool, chunk, collection, seed, client)
                write_transitions(part, filter(is_sample, transitions), {"dropped": lost})
                if record is not None:
                    record(number + 1, len(chunks), episodes)
            dropped |= read_metadata(part)["dropped"]
            finished = min((number + 1) * size, len(starts))
            if len(dropped) > collection.max_dropped_share * finished and len(dropped) > 1:
                raise RuntimeError(
                    f"{len(dropped)} of {finished} episodes were lost to failures of the environment, more than "
                    f"data.predictions.collection.max_dropped_share ({collection.max_dropped_share}) allows"
                    f"{_last_reason(dropped)}"
                )
            progress.update(
                task, advance=len(chunk), description=f"{len(dropped)} dropped" if dropped else ""
            )
    collected = [
        t for number in range(len(chunks)) for t in read_transitions(parts / f"{number:05d}.parquet")
    ]
    if not collected:
        raise RuntimeError(
            f"no transitions were collected from {len(starts)} episodes{_last_reason(dropped)}"
        )
    write_transitions(path, collected, {**settings, "dropped_episodes": len(dropped)})
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()
    console.print(collection_table(collected, len(starts), len(dropped)))


def play_chunk(
    pool: EnvironmentPool,
    starts: Sequence[Start],
    collection: Collection,
    seed: int,
    policy: PolicyClient | None,
) -> tuple[list[Episode], list[Transition], dict[str, str]]:
    """Play a batch of episodes at once.

    Returns:
        Episodes and their transitions, in the order of the starts, and the reason for each lost episode, by its name.
    """
    if collection.behaviour == "branches":
        experts, lost = follow_expert(
            pool, starts, collection.max_turns, seed, collection.num_alternatives, collection.history_turns
        )
        return [one.episode for one in experts], [t for one in experts for t in one.transitions], lost
    outcome = play(
        pool, starts, _actor(collection, seed, policy), collection.max_turns, collection.history_turns
    )
    return (
        [one.episode for one in outcome.played],
        [turn.transition for one in outcome.played for turn in one.turns],
        {
            start.episode_id: one.line
            for start, one in zip(starts, outcome.episodes, strict=True)
            if isinstance(one, Failure)
        },
    )


def _actor(collection: Collection, seed: int, policy: PolicyClient | None) -> Actor:
    if collection.behaviour == "random":
        return RandomActor(seed, collection.expert_share, collection.invalid_share)
    assert policy is not None
    return ModelActor(
        policy,
        collection.prompt,
        Sampling(collection.max_new_tokens),
        lambda episode_id, turn: derive_seed(seed, "act", episode_id, turn),
    )


def collection_settings(
    spec: EnvironmentSpec, collection: Collection, seed: int, policy: PolicyClient | None
) -> dict[str, Any]:
    """Return all settings that the transitions depend on, as plain values."""
    settings: dict[str, Any] = {
        "environment": {"id": spec.id, "kwargs": spec.arguments},
        "collection": asdict(collection),
        "seed": seed,
    }
    if policy is not None:
        settings["policy"] = {
            "model": getattr(policy.generator, "model", None),
            "chat": fingerprint(policy.chat),
            "end_tokens": sorted(policy.chat.end_token_ids),
            "context": policy.context,
        }
    return settings


def _last_reason(dropped: Mapping[str, str]) -> str:
    """Format the last lost episode and its reason for the end of a message; empty if no episode was lost."""
    return "".join(f"; episode {name}: {reason}" for name, reason in [*dropped.items()][-1:])


def check_settings(parts: Path, settings: dict[str, Any]) -> None:
    """Raise a ValueError if existing parts were collected with other settings; store the settings of new parts."""
    parts.mkdir(parents=True, exist_ok=True)
    file = parts / "settings.json"
    text = json.dumps(settings, sort_keys=True, default=str)
    if not file.exists():
        file.write_text(text)
    elif file.read_text() != text:
        raise ValueError(
            f"{parts} holds the parts of a collection with other settings: remove it, or name another file in "
            "data.predictions.transitions"
        )


def list_starts(spec: EnvironmentSpec, collection: Collection, seed: int) -> Iterator[Start]:
    """Yield all episodes to play, in an order that mixes games and splits.

    An environment without a ``tasks`` attribute is played ``episodes_per_game`` times, each time with another seed.
    """
    tasks = list_tasks(spec)
    names = {"": [""]} if tasks is None else tasks
    unknown = sorted(set(collection.splits or ()) - set(names))
    if unknown:
        raise ValueError(
            f"data.predictions.collection.splits names {unknown[0]!r}; the environment has {', '.join(sorted(names))}"
        )
    chosen = {
        split: games
        for split, games in names.items()
        if collection.splits is None or split in collection.splits
    }
    has_validation = any(is_validation(split) for split in chosen) and any(
        not is_validation(split) for split in chosen
    )
    games = [game for listed in chosen.values() for game in listed]
    repeated = next((game for game, times in Counter(games).items() if times > 1), None)
    if repeated is not None:
        where = ", ".join(split for split, listed in chosen.items() if repeated in listed)
        raise ValueError(
            f"the environment lists the task {repeated!r} more than once (splits: {where}); set "
            "data.predictions.collection.splits to splits that contain it at most once"
        )
    episodes = {
        episode_name(game, number): (split, game)
        for split, listed in chosen.items()
        for game in listed
        for number in range(collection.episodes_per_game)
    }
    # If the environment has no tasks, each seed is a game.
    drawn = split_of_game(list(episodes) if tasks is None else games, seed, collection.validation_share)
    for name in sorted(episodes, key=lambda name: derive_seed(seed, "job", name)):
        split, game = episodes[name]
        assigned: Literal["train", "validation"] = "validation" if is_validation(split) else "train"
        if not has_validation:
            assigned = drawn[name if tasks is None else game]
        yield Start(name, game, episode_seed(seed, name), assigned)


def collection_table(transitions: Sequence[Transition], num_episodes: int, num_dropped: int) -> Table:
    """Build a table with the number of collected transitions by kind and split."""
    table = Table(
        title=f"{len(transitions)} transitions of {num_episodes - num_dropped} episodes, {num_dropped} dropped"
    )
    for column in ("kind", "train", "validation", "invalid", "not knowable"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    counts = Counter((t.kind, t.split) for t in transitions)
    invalid = Counter(t.kind for t in transitions if not t.valid)
    unknowable = Counter(t.kind for t in transitions if not t.knowable)
    for kind in sorted({t.kind for t in transitions}):
        numbers = (counts[kind, "train"], counts[kind, "validation"], invalid[kind], unknowable[kind])
        table.add_row(kind, *map(str, numbers))
    return table
