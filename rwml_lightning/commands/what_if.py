"""``what_if``: compare a model's predictions for any action in any state with the environment's real answer.

A front end starts the command as a child process and writes one JSON object per line; see :func:`serve`. Standard output
carries only answers.
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
    """Predict and execute actions from requests on standard input, with answers on standard output.

    Args:
        configured: Config of the environment, prompt and evaluator, and of the model unless ``weights`` names another.
        weights: Checkpoint (.ckpt), model folder, hub id, package: name, or run folder (for its newest weights).
        group_size: Number of predictions per action.
    """
    model = configured.model
    with take_stdout() as answers:
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
    """A state that the environment can reach again.

    Args:
        game: Task id; empty if the environment has no tasks and the seed alone determines the game.
        seed: Seed of the reset.
        actions: Actions that lead from the reset to the state.
    """

    game: str
    seed: int
    actions: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Place:
        """Build a place from the dict of :func:`dataclasses.asdict` or of a front end."""
        actions = tuple(well_formed(str(action)) for action in value["actions"])
        return cls(str(value["game"]), int(value["seed"]), actions)


class WhatIf:
    """Brings the environment to a state, lets the model predict the outcome of an action, and executes the action.

    Args:
        data: Environment, prompt and evaluator. The file of transitions holds the actions that lead to a recorded state.
        module: Module with the model.
        group_size: Number of predictions per action.

    Raises:
        ValueError: The config names no environment.
    """

    def __init__(self, data: RolloutDataModule, module: WorldModelSFT, group_size: int) -> None:
        if data.environment is None:
            raise ValueError("data.environment is not set; what_if needs an environment to act in")
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
        )
        self._num_draws: Counter[tuple[Place, str]] = Counter()

    def find(self, transition_id: str) -> Place:
        """Find the state in which a recorded transition began.

        Raises:
            ValueError: The file does not hold the transition or an earlier one of its episode, or the environment no
                longer reaches the state.
        """
        if transition_id not in self._recorded:
            raise ValueError(f"{self.predictions.path} holds no transition {transition_id!r}")
        episode, _, turn = transition_id.rpartition("/")
        earlier = [f"{episode}/{number}" for number in range(int(turn))] if turn.isdecimal() else [""]
        if not all(name in self._recorded for name in earlier):
            raise ValueError(
                f"{self.predictions.path} does not hold all actions that led to {transition_id!r}; begin a new game instead"
            )
        actions = tuple(self._recorded[name].action for name in earlier)
        place = Place(task_of(episode), episode_seed(self._collection_seed, episode), actions)
        if self.replay(place)[0].observation != self._recorded[transition_id].observation:
            raise ValueError(
                f"the environment no longer reaches the state of {transition_id!r}; begin a new game instead"
            )
        return place

    def begin(self, number: int) -> Place:
        """Return the start of a game. Held-out games come first; after the last game, the numbers start over."""
        games = self._games
        game = games[number % len(games)] if games else ""
        return Place(game, episode_seed(self.seed, episode_name(game, number)))

    def replay(self, place: Place) -> tuple[EpisodeState, bool]:
        """Return the state at a place, and whether the episode has ended there.

        Raises:
            ValueError: The environment fails, or the episode ends before the place.
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

    def predict(self, place: Place, action: str) -> Group:
        """Predict the outcome of an action, and execute it. Each call samples new predictions.

        Raises:
            ValueError: The episode has ended, the environment fails, or a prediction cannot be made or scored.
        """
        played = self._play(place, [*place.actions, action])
        if len(played.turns) <= len(place.actions):
            raise ValueError("the episode is over here; go back a turn, or begin a new game")
        transition = played.turns[-1].transition
        draw = self._num_draws[place, action]
        validation = self.predictions.validation
        sampling = Sampling(self.predictions.sampling.max_tokens, validation.temperature, validation.top_p)
        groups = self.rollouts.collect(_STAGE, draw, [transition], self.group_size, sampling).groups
        if not groups:
            raise ValueError("the reward could not score the prediction; the log gives the reason")
        self._num_draws[place, action] += 1
        return groups[0]

    def close(self) -> None:
        """Shut down the environment."""
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
        request: ``{"find": transition id}``, ``{"begin": number}`` or ``{"place": {game, seed, actions}}``. A request with
            a place may also have an ``action`` to predict and execute.

    Returns:
        ``place``, ``task``, ``turns``, ``observation``, ``admissible`` and ``over`` of the state before the action. With an
        action, also ``transition`` and ``predictions``. If the request fails, only ``error``, one line.
    """
    try:
        if "find" in request:
            place = world.find(str(request["find"]))
        elif "begin" in request:
            place = world.begin(int(request["begin"]))
        else:
            place = Place.from_json(request["place"])
        action = well_formed(str(request.get("action") or "")).strip()
        outcome = describe_group(world.predict(place, action)) if action else {}
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
    """Convert a group to a dict with the keys of the run store's records."""
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
    """Return the name of the weights to load.

    Args:
        model: Model of the config.
        weights: Checkpoint (``.ckpt``), model folder, hub id or ``package:`` name; or a run folder, which stands for its
            export, else its last checkpoint, else the result of its warm-up, else ``model``.
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
    """Answer requests until the input ends.

    The first lines are ``{"status": text}``, then ``{"ready": name of the weights}``. One answer per request follows, with
    the request's ``id``. A request that fails is answered with an ``error``; a failure at the start ends the process.

    Args:
        data: See :class:`WhatIf`.
        model: Weights, as :func:`rwml_lightning.commands.model_evaluator.load_module` takes them.
        dtype: Dtype of weights that are no checkpoint.
        group_size: Number of predictions per action.
        requests: Lines of JSON.
        answers: Stream to which lines of JSON are written.
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


def take_stdout() -> TextIO:
    """Return standard output as a stream for answers. All other prints go to standard error from now on."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
