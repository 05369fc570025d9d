"""``what_if``: what a model predicts of any action in any state, beside what the environment really answers.

A front end starts it as a child and writes one JSON object a line; see :func:`serve`. Standard output holds answers alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import torch

from rwml_lightning.commands.configured import Configured
from rwml_lightning.commands.model_evaluator import load_module
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.data.transitions import read_metadata, read_transitions
from rwml_lightning.envs import EnvironmentPool, Failure
from rwml_lightning.episodes.actors import ListActor
from rwml_lightning.episodes.games import episode_name, episode_seed, is_validation, list_tasks, task_of
from rwml_lightning.episodes.loop import Played, Start, play
from rwml_lightning.episodes.state import EpisodeState
from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules.loading import Dtype
from rwml_lightning.modules.wm_sft import WorldModelSFT
from rwml_lightning.printable import well_formed
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.rewards import ServerError
from rwml_lightning.run import CONFIG_FILE, RunFolder
from rwml_lightning.schema import Group, Sampling, Transition

_STAGE = "what_if"


def what_if(configured: Configured, weights: str | None = None, group_size: int = 4) -> None:
    """Answer, line by line on standard input and output, what a model predicts of an action and what happens.

    Args:
        configured: Its environment, prompt and evaluator are used, and its model where ``weights`` names no other.
        weights: Checkpoint (.ckpt), model folder, hub id, package: name, or run folder, of which the newest are taken.
        group_size: Predictions an action.
    """
    model = configured.model
    with own_output() as answers:
        serve(
            configured.data,
            newest_weights(model.model, weights),
            model.dtype_name,
            group_size,
            sys.stdin,
            answers,
        )


@dataclass(frozen=True)
class Place:
    """A state that an environment can be brought back to.

    Args:
        game: Task id; empty where the seed alone is the game.
        seed: Seed of the reset.
        actions: What leads there from the reset.
    """

    game: str
    seed: int
    actions: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Place:
        """What :func:`dataclasses.asdict` made of a place, or a front end wrote."""
        return cls(
            str(value["game"]), int(value["seed"]), tuple(well_formed(str(one)) for one in value["actions"])
        )


class WhatIf:
    """Brings the environment to a state, asks the model what an action would do there, and does it.

    Args:
        data: Environment, prompt, and what held-out predictions are scored by; its transitions file knows which actions led
            to a recorded state.
        module: The model.
        group_size: Predictions an action.

    Raises:
        ValueError: The config names no environment.
    """

    def __init__(self, data: RolloutDataModule, module: WorldModelSFT, group_size: int) -> None:
        if data.environment is None:
            raise ValueError("data.environment is not set, so there is nothing to act in")
        self.predictions = data.need_predictions()
        self.seed = data.seed
        self.group_size = group_size
        self.pool = EnvironmentPool(data.environment, num_workers=1)
        generator = HFGenerator(max_model_len=data.generator.max_model_len)
        generator.attach(module.policy)
        self.rollouts = WorldModelRollouts(
            PolicyClient.of(module, generator, data.chat_template_kwargs),
            self.predictions.need_evaluator(),
            self.predictions.prompt,
            data.seed,
            max_dropped_share=1.0,
        )
        self._asked: Counter[tuple[Place, str]] = Counter()

    def find(self, transition_id: str) -> Place:
        """Where a recorded transition began.

        Raises:
            ValueError: The file does not hold it, or not all that led to it; or the environment answers otherwise now.
        """
        if transition_id not in self._recorded:
            raise ValueError(f"{self.predictions.path} holds no transition {transition_id!r}")
        episode, _, turn = transition_id.rpartition("/")
        earlier = [f"{episode}/{number}" for number in range(int(turn))] if turn.isdecimal() else [""]
        lost = next((name for name in earlier if name not in self._recorded), None)
        if lost is not None:
            raise ValueError(
                f"{self.predictions.path} does not tell which actions led to {transition_id!r}; begin a new game instead"
            )
        actions = tuple(self._recorded[name].action for name in earlier)
        place = Place(task_of(episode), episode_seed(self._collection_seed, episode), actions)
        if self.replay(place)[0].observation != self._recorded[transition_id].observation:
            raise ValueError(
                f"the environment no longer comes to the state of {transition_id!r} by its actions"
            )
        return place

    def begin(self, number: int) -> Place:
        """The start of a game; held-out ones come first, and after the last the first again."""
        games = self._games
        game = games[number % len(games)] if games else ""
        return Place(game, episode_seed(self.seed, episode_name(game, number)))

    def replay(self, place: Place) -> tuple[EpisodeState, bool]:
        """The state at a place, and whether the episode is over there.

        Raises:
            ValueError: The environment fails on the way, or ends before.
        """
        played = self._play(place, place.actions)
        return played.state, played.state.last.done

    def _play(self, place: Place, actions: Sequence[str]) -> Played:
        start = Start(episode_name(place.game, 0), place.game, place.seed)
        actor = ListActor({start.episode_id: actions})
        (played,) = play(self.pool, [start], actor, len(actions), attempts=1).episodes
        if isinstance(played, Failure):
            raise ValueError(f"the environment failed: {played.line}")
        if len(played.turns) < len(place.actions):
            raise ValueError(f"the episode is over after {len(played.turns)} turns")
        return played

    def ask(self, place: Place, action: str) -> Group:
        """What the model predicts, and what happens; asked again, it predicts anew.

        Raises:
            ValueError: The episode is over, the environment fails, or the prediction could not be made or scored.
        """
        played = self._play(place, [*place.actions, action])
        if len(played.turns) <= len(place.actions):
            raise ValueError("the episode is over here; go back a turn, or begin a new game")
        transition = played.turns[-1].transition
        draw = self._asked[place, action]
        how = self.predictions.validation
        sampling = Sampling(self.predictions.sampling.max_tokens, how.temperature, how.top_p)
        groups = self.rollouts.collect(_STAGE, draw, [transition], self.group_size, sampling).groups
        if not groups:
            raise ValueError("the reward gave no verdict on the prediction; the trainer's log says why")
        self._asked[place, action] += 1
        return groups[0]

    def close(self) -> None:
        """End the environment."""
        self.pool.close()

    @cached_property
    def _recorded(self) -> dict[str, Transition]:
        if not self.predictions.path.exists():
            raise ValueError(
                f"data.predictions.transitions names {self.predictions.path}, which does not exist here; start in the folder in which the run "
                "was started, or begin a new game"
            )
        return {
            t.transition_id: t for t in read_transitions(self.predictions.path, self.predictions.on_broken)
        }

    @cached_property
    def _collection_seed(self) -> int:
        return int(read_metadata(self.predictions.path).get("seed", self.seed))

    @cached_property
    def _games(self) -> list[str]:
        names = list_tasks(self.pool.spec) or {}
        return [game for split in sorted(names, key=lambda s: not is_validation(s)) for game in names[split]]


def respond(world: WhatIf, request: Mapping[str, Any]) -> dict[str, Any]:
    """Answer one request.

    Args:
        world: Model and environment.
        request: ``{"find": transition id}``, ``{"begin": number}`` or ``{"place": {game, seed, actions}}``; the last with an
            ``action`` to predict and to do, or without.

    Returns:
        ``place``, ``task``, ``turns``, ``observation``, ``admissible`` and ``over`` of the state, which is the one before the
        action; with an action also ``transition`` and ``predictions``. Or ``error``, one line.
    """
    try:
        if "find" in request:
            place = world.find(str(request["find"]))
        elif "begin" in request:
            place = world.begin(int(request["begin"]))
        else:
            place = Place.from_json(request["place"])
        action = well_formed(str(request.get("action") or "")).strip()
        outcome = describe_group(world.ask(place, action)) if action else {}
        state, over = world.replay(place)
    except (ValueError, ServerError) as error:
        return {"error": " ".join(str(error).split())}
    return {
        "place": asdict(place),
        "task": state.task,
        "turns": [asdict(turn) for turn in state.turns],
        "observation": state.observation,
        "admissible": list(state.admissible),
        "over": over,
        **outcome,
    }


def describe_group(group: Group) -> dict[str, Any]:
    """A group in the words of the run store's records."""
    return {
        "transition": asdict(group.transition),
        "predictions": [
            {
                "group_id": 0,
                "member": one.member,
                "reward": one.score.reward,
                "similarity": one.score.similarity,
                "advantage": one.advantage,
                "well_formed": one.score.well_formed,
                "tokens": len(one.completion.token_ids),
                "finish_reason": one.completion.finish_reason,
                "policy_version": one.completion.policy_version,
                "parts": dict(one.score.parts),
                "next_state": one.next_state,
                "thinking": one.thinking,
                "text": one.text,
            }
            for one in group.predictions
        ],
    }


def newest_weights(model: str, weights: str | None) -> str:
    """What to load.

    Args:
        model: The config's.
        weights: A checkpoint (``.ckpt``), model folder, hub id or ``package:`` name; or a run folder, of which the export is
            taken, else the last checkpoint, else the warm-up's result, else ``model``.
    """
    if weights is None or not (Path(weights) / CONFIG_FILE).is_file():
        return weights or model
    folder = RunFolder(Path(weights))
    if folder.finished:
        return str(folder.export)
    if folder.last_checkpoint is not None:
        return str(folder.last_checkpoint)
    return str(folder.warm_up) if folder.warm_up.is_dir() else model


def serve(
    data: RolloutDataModule,
    model: str,
    dtype: Dtype,
    group_size: int,
    requests: Iterable[str],
    answers: TextIO,
) -> None:
    """Answer requests until they end.

    First come lines ``{"status": text}``, then ``{"ready": name of the weights}``; then one answer a request, with its
    ``id``. What cannot be answered is an ``error``; what is wrong with the start ends the process.

    Args:
        data: See :class:`WhatIf`.
        model: Weights, as :func:`rwml_lightning.commands.model_evaluator.load_module` takes them.
        dtype: Dtype of weights that are no checkpoint.
        group_size: Predictions an action.
        requests: Lines of JSON.
        answers: Gets lines of JSON.
    """

    def send(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    send({"status": f"loading {model}"})
    try:
        module = load_module(model, dtype)
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error
    if torch.cuda.is_available():
        module.policy.cuda()
    send({"status": "starting the environment"})
    world = WhatIf(data, module, group_size)
    try:
        send({"ready": model})
        for line in requests:
            request = json.loads(line)
            send({"id": request.get("id"), **respond(world, request)})
    finally:
        world.close()


def own_output() -> TextIO:
    """Standard output for answers alone: what libraries print goes to standard error from now on."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
