"""What collecting shows and how its seconds are counted, by a clock of the test's own."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rwml_lightning import terminal as terminals
from rwml_lightning.data import demonstrations, rollouts
from rwml_lightning.data.demonstrations import Demonstrations, collect_demonstrations
from rwml_lightning.data.rollouts import WorldModelRollouts
from rwml_lightning.envs import EnvironmentPool, EnvironmentSpec
from rwml_lightning.envs.alfworld import generate
from rwml_lightning.envs.alfworld.generated_games import GeneratedGames
from rwml_lightning.episodes.games import Game
from rwml_lightning.episodes.player import EpisodePlayer
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Sampling
from rwml_lightning.terminal import Terminal
from support.rewards import LetterReward
from support.scripted_generator import Scripted
from support.worlds import ACTION_PROMPT, make_transition

PROMPT = ActionPrompt(layout="conversation", system="", user="{observation}", reply="{observation}")


class Clock:
    """Stands for the module ``time``: goes on only where something is said to take seconds."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def later(*arguments: Any, **named: Any) -> Any:
            self.now += seconds
            return call(*arguments, **named)

        return later


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[EnvironmentPool]:
    games = {"train": ["a", "b", "broken-c"]}
    spec = EnvironmentSpec(
        "support.environments.RoomsEnv", {"games": games, "folder": str(tmp_path), "length": 4}
    )
    with EnvironmentPool(spec, num_workers=1) as pool:
        yield pool


def test_seconds_of_predictions_are_the_generator_s_and_the_reward_s(
    tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, reward = Clock(), LetterReward()
    monkeypatch.setattr(rollouts, "time", clock)
    generator: Any = Scripted(tiny_tokenizer, lambda prompt, seed: "<next_state>a</next_state>")
    monkeypatch.setattr(generator, "generate", clock.takes(2.0, generator.generate))
    monkeypatch.setattr(reward.letters, "encode", clock.takes(0.25, reward.letters.encode))
    policy = PolicyClient(generator, ChatFormat(tiny_tokenizer))
    made = WorldModelRollouts(policy, reward, ACTION_PROMPT, seed=0)
    batch = made.collect("wm_grpo", 3, [make_transition(0)], 2, Sampling(20))
    assert batch.seconds == {"generate": 2.0, "reward": 0.25}


@pytest.fixture(params=[True, False])
def screen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[bool, io.StringIO]:
    """Whether standard error is a terminal, and what it would show."""
    shown = io.StringIO()

    def terminal(**options: Any) -> Terminal:
        assert options == {"stderr": True}
        return Terminal(file=shown, force_terminal=request.param, width=400, color_system=None)

    for module in (demonstrations, terminals):
        monkeypatch.setattr(module, "Terminal", terminal)
    return request.param, shown


def test_the_bar_of_generated_games_is_for_a_terminal(
    screen: tuple[bool, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate_games(folder: str, count: int, progress: Callable[[int, int], None], **_: Any) -> None:
        progress(count - 1, count + 1)

    monkeypatch.setattr(generate, "generate_games", generate_games)
    GeneratedGames("f", 3, 2).generate(9)
    terminal, shown = screen
    if not terminal:
        assert shown.getvalue() == ""
        return
    lines = [line for line in shown.getvalue().splitlines() if "generating" in line]
    for split, done in (("train", "2/4"), ("validation", "1/3")):
        last = [line for line in lines if f"generating {split} games" in line][-1]
        assert last.split()[-1] == done
        assert "\u2501" in last  # a bar between the name and the numbers


@pytest.mark.heavy
def test_the_end_of_demonstrations_is_said_in_a_line(
    pool: EnvironmentPool,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    screen: tuple[bool, io.StringIO],
) -> None:
    generator: Any = Scripted(tiny_tokenizer, lambda prompt, seed: "")
    player = EpisodePlayer(pool, PolicyClient(generator, ChatFormat(tiny_tokenizer)), PROMPT, 0)
    path = tmp_path / "d.parquet"
    games = [Game("a", 1), Game("broken-c", 3), Game("b", 2)]
    collect_demonstrations(Demonstrations(str(path), max_turns=6), player, games, 20)
    terminal, shown = screen
    lines = [line for line in shown.getvalue().splitlines() if line.strip()]
    assert (
        lines[-1].removeprefix("\x1b[?25h") == f"6 turns of 2 solved episodes from 3 games, written to {path}"
    )
    assert (len(lines) > 1) == terminal
    assert any("demonstrations by expert" in line for line in lines) == terminal
