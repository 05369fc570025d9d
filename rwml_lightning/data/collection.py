"""Rolls a player out in an environment and writes what the environment answered."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rwml_lightning.data.action_prompts import ActionPrompt
from rwml_lightning.data.behaviour import Behaviour, ModelBehaviour, make_behaviour
from rwml_lightning.data.branches import ExpertGame, follow_expert, transitions_of
from rwml_lightning.data.chat_format import ChatFormat
from rwml_lightning.data.episodes import EpisodeState, episode_name, episode_seed
from rwml_lightning.data.generated_games import GeneratedGames, make_games
from rwml_lightning.data.transitions import (
    is_sample,
    read_metadata,
    read_transitions,
    split_of_game,
    write_transitions,
)
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec, Failure, read_tasks
from rwml_lightning.generation import Generator
from rwml_lightning.schema import Episode, Transition
from rwml_lightning.seeds import derive_seed
from rwml_lightning.terminal import Terminal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """How transitions are collected.

    Args:
        behaviour: ``model`` (the policy at temperature 1, as in the paper), ``random``, for models too weak to act, or
            ``branches``: the stored walkthroughs, and at each of their steps what some other actions would have done (for
            implicit world modelling, arXiv 2510.08558).
        episodes_per_game: Episodes of each game.
        max_steps: Actions an episode.
        expert_share: For ``random``: share of stretches of steps that follow the stored walkthrough.
        invalid_share: For ``random``: share of steps that try an action which is not admissible now.
        num_alternatives: For ``branches``: other actions at each step.
        max_new_tokens: For ``model``: limit of thinking and action.
        prompt: For ``model``: what it reads before it acts.
        history_turns: Earlier turns stored with each transition; prompts may show fewer.
        validation_share: Share of games for validation where the environment has no validation split (paper: 10 %).
        splits: Splits of the environment that are collected; ``null`` for all.
        num_environments: Episodes at once.
        num_workers: Processes that step them.
        step_timeout_s: Seconds after which a step counts as hung.
        max_dropped_share: Stop when more than this share of episodes is lost to failures of the environment.
    """

    behaviour: Literal["model", "random", "branches"] = "model"
    episodes_per_game: int = 1
    max_steps: int = 30
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


@dataclass(frozen=True)
class Job:
    """One episode to play: a game, its number, and the split its transitions belong to."""

    game: str
    number: int
    split: Literal["train", "validation"]

    @property
    def episode_id(self) -> str:
        return episode_name(self.game, self.number)


@dataclass(frozen=True)
class Played:
    """An episode that came to its end without a failure, and its transitions."""

    episode: Episode
    transitions: list[Transition]


def collect(
    path: Path,
    spec: EnvironmentSpec,
    games: GeneratedGames | None,
    collection: Collection,
    seed: int,
    generator: Generator,
    chat: Callable[[], ChatFormat],
    context: Callable[[], int | None],
    record: Callable[[int, int, list[Episode]], None] | None = None,
) -> None:
    """Collect transitions into ``path``; interrupted, it goes on where it was.

    Finished batches of episodes lie in ``<path>.parts`` until all are there; a file that is complete is left alone.

    Args:
        path: Parquet file to write.
        spec: The environment.
        games: Games to generate first.
        collection: How to collect.
        seed: The run's seed; an episode's actions follow from it and the episode's name.
        generator: For ``behaviour: model``.
        chat: Gives the policy's chat format; for ``behaviour: model``.
        context: Gives the most tokens of a prompt and its completion; for ``behaviour: model``.
        record: Called with (number of the batch from 1, how many there are, its episodes) after each.

    Raises:
        ValueError: Settings that do not fit, or parts collected with other settings.
        RuntimeError: Too many episodes were lost to failures of the environment; the message has the last reason.
    """
    if path.exists():
        return
    if games is not None:
        make_games(games, seed)
        spec = games.played_by(spec)
    settings = {"environment": asdict(spec), "collection": asdict(collection), "seed": seed}
    jobs = list(list_jobs(spec, collection, seed))
    behaviour = None
    if collection.behaviour != "branches":
        behaviour = make_behaviour(
            collection.behaviour,
            collection.expert_share,
            collection.invalid_share,
            collection.max_new_tokens,
            seed,
            generator,
            chat,
            context,
            collection.prompt,
        )
    if isinstance(behaviour, ModelBehaviour):
        settings["policy"] = behaviour.policy
    parts = path.with_name(path.name + ".parts")
    names = "\n".join(f"{job.split} {job.episode_id}" for job in jobs)
    check_settings(parts, {**settings, "episodes": hashlib.sha256(names.encode()).hexdigest()})
    size = collection.num_environments
    chunks = [jobs[i : i + size] for i in range(0, len(jobs), size)]
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
        task = progress.add_task("", total=len(jobs))
        for number, chunk in enumerate(chunks):
            part = parts / f"{number:05d}.parquet"
            if not part.exists():
                if behaviour is None:
                    played, lost = play_branches(pool, chunk, collection, spec.id, seed)
                else:
                    played, lost = play(pool, chunk, behaviour, collection, spec.id, seed)
                write_transitions(part, (t for one in played for t in one.transitions), {"dropped": lost})
                if record is not None:
                    record(number + 1, len(chunks), [one.episode for one in played])
            dropped |= read_metadata(part)["dropped"]
            finished = min((number + 1) * size, len(jobs))
            if len(dropped) > collection.max_dropped_share * finished and len(dropped) > 1:
                raise RuntimeError(
                    f"{len(dropped)} of {finished} episodes were lost to failures of the environment, more than "
                    f"data.collection.max_dropped_share ({collection.max_dropped_share}) allows{_last_reason(dropped)}"
                )
            progress.update(
                task, advance=len(chunk), description=f"{len(dropped)} dropped" if dropped else ""
            )
    transitions = [
        t for number in range(len(chunks)) for t in read_transitions(parts / f"{number:05d}.parquet")
    ]
    if not transitions:
        raise RuntimeError(f"no transitions came of {len(jobs)} episodes{_last_reason(dropped)}")
    write_transitions(path, transitions, {**settings, "dropped_episodes": len(dropped)})
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()
    console.print(collection_table(transitions, len(jobs), len(dropped)))


def _last_reason(dropped: Mapping[str, str]) -> str:
    """The end of a message about lost episodes: the last of them and why, where there is one."""
    return "".join(f"; episode {name}: {reason}" for name, reason in [*dropped.items()][-1:])


def check_settings(parts: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with parts that were collected otherwise."""
    parts.mkdir(parents=True, exist_ok=True)
    file = parts / "settings.json"
    text = json.dumps(settings, sort_keys=True, default=str)
    if not file.exists():
        file.write_text(text)
    elif file.read_text() != text:
        raise ValueError(
            f"{parts} holds the parts of a collection with other settings: remove it, or name another file in "
            "data.transitions"
        )


def task_names(spec: EnvironmentSpec) -> dict[str, list[str]] | None:
    """Task ids by split, or ``None`` for an environment without a ``tasks`` attribute.

    Raises:
        ValueError: The environment cannot be made, or its ``tasks`` are not texts by split.
    """
    environment = spec.make()
    tasks = getattr(environment.unwrapped, "tasks", None)
    environment.close()
    try:
        return None if tasks is None else read_tasks(tasks)
    except ValueError as error:
        raise ValueError(f"environment {spec.id!r}: {error}") from error


def list_jobs(spec: EnvironmentSpec, collection: Collection, seed: int) -> Iterator[Job]:
    """All episodes to play, in an order that mixes games and splits.

    An environment without a ``tasks`` attribute is played ``episodes_per_game`` times by seed alone.
    """
    tasks = task_names(spec)
    names = {"": [""]} if tasks is None else tasks
    unknown = sorted(set(collection.splits or ()) - set(names))
    if unknown:
        raise ValueError(
            f"data.collection.splits names {unknown[0]!r}; the environment has {', '.join(sorted(names))}"
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
    twice = next((game for game, times in Counter(games).items() if times > 1), None)
    if twice is not None:
        where = ", ".join(split for split, listed in chosen.items() if twice in listed)
        raise ValueError(
            f"the environment names the task {twice!r} twice (splits: {where}); name splits without it in "
            "data.collection.splits"
        )
    drawn = split_of_game(games, seed, collection.validation_share)
    jobs: list[Job] = []
    for split, listed in chosen.items():
        for game in listed:
            for number in range(collection.episodes_per_game):
                own: Literal["train", "validation"] = "validation" if is_validation(split) else "train"
                jobs.append(Job(game, number, own if has_validation else drawn[game]))
    if tasks is None:  # the seed is the game
        drawn = split_of_game([job.episode_id for job in jobs], seed, collection.validation_share)
        jobs = [Job(job.game, job.number, drawn[job.episode_id]) for job in jobs]
    yield from sorted(jobs, key=lambda job: derive_seed(seed, "job", job.episode_id))


def is_validation(split: str) -> bool:
    """Whether games of this split are never trained on."""
    return split.startswith(("valid", "test", "eval"))


def play(
    pool: EnvironmentPool,
    jobs: Sequence[Job],
    behaviour: Behaviour,
    collection: Collection,
    environment: str,
    seed: int,
    attempts: int = 2,
) -> tuple[list[Played], dict[str, str]]:
    """Play some episodes at once; one that fails is tried again in a fresh environment, then dropped.

    Returns:
        Episodes in the order of ``jobs``, and why the others were lost, by name.
    """
    outcomes: dict[int, Played | Failure] = {}
    waiting = dict(enumerate(jobs))
    for attempt in range(attempts):
        outcomes |= _play_once(pool, waiting, behaviour, collection, environment, seed)
        waiting = {slot: job for slot, job in waiting.items() if isinstance(outcomes[slot], Failure)}
        if not waiting:
            break
        fate = "is tried again" if attempt + 1 < attempts else "is dropped"
        for job in waiting.values():
            log.warning("episode %s failed and %s", job.episode_id, fate)
    return (
        [one for _, one in sorted(outcomes.items()) if isinstance(one, Played)],
        {jobs[slot].episode_id: one.line for slot, one in outcomes.items() if isinstance(one, Failure)},
    )


def play_branches(
    pool: EnvironmentPool, jobs: Sequence[Job], collection: Collection, environment: str, seed: int
) -> tuple[list[Played], dict[str, str]]:
    """Episodes of the expert with what other actions would have done, and why there are no others, by name."""
    games = [
        ExpertGame(job.episode_id, job.game, episode_seed(seed, job.episode_id), job.split) for job in jobs
    ]
    found, unsolved = follow_expert(
        pool,
        environment,
        games,
        collection.max_steps,
        seed,
        collection.num_alternatives,
        collection.history_turns,
    )
    played = [
        Played(expert.episode, [one for one in transitions_of(expert) if is_sample(one)]) for expert in found
    ]
    return played, unsolved


def _play_once(
    pool: EnvironmentPool,
    jobs: dict[int, Job],
    behaviour: Behaviour,
    collection: Collection,
    environment: str,
    seed: int,
) -> dict[int, Played | Failure]:
    """What became of each episode, by slot."""
    results = pool.reset_many(
        (slot, episode_seed(seed, job.episode_id), job.game or None) for slot, job in jobs.items()
    )
    begun = [slot for slot, result in results.items() if not isinstance(result, Failure)]
    expert = pool.walkthrough_many(begun) if collection.expert_share else {}
    live: dict[int, EpisodeState] = {}
    transitions: dict[int, list[Transition]] = {slot: [] for slot in jobs}
    outcomes: dict[int, Played | Failure] = {}

    def lose(slot: int, failure: Failure) -> None:
        log.warning("episode %s: %s", jobs[slot].episode_id, failure.error)
        live.pop(slot, None)
        outcomes[slot] = failure

    def end(slot: int) -> None:
        job = jobs[slot]
        episode = live.pop(slot).finish(environment, job.game, episode_seed(seed, job.episode_id))
        outcomes[slot] = Played(episode, transitions[slot])

    for slot, result in results.items():
        walkthrough = expert.get(slot, ())
        if isinstance(result, Failure):
            lose(slot, result)
        elif isinstance(walkthrough, Failure):
            lose(slot, walkthrough)
        else:
            live[slot] = EpisodeState.begin(jobs[slot].episode_id, result, walkthrough)
    for _ in range(collection.max_steps):
        acts = dict(zip(live, behaviour.act(list(live.values())), strict=True))
        for slot in [slot for slot, act in acts.items() if act is None]:
            end(slot)
        actions = {slot: act for slot, act in acts.items() if act is not None}
        if not actions:
            break
        for slot, result in pool.step_many({slot: action for slot, (action, _) in actions.items()}).items():
            if isinstance(result, Failure):
                lose(slot, result)
                continue
            action, thinking = actions[slot]
            transition = live[slot].advance(
                action, result, environment, thinking, collection.history_turns, jobs[slot].split
            )
            if is_sample(transition):
                transitions[slot].append(transition)
            if result.done:
                end(slot)
    for slot in list(live):
        end(slot)
    return outcomes


def collection_table(transitions: Sequence[Transition], num_episodes: int, num_dropped: int) -> Table:
    """What was collected: transitions by kind and split."""
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
