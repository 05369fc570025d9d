"""Training samples from the whole distribution; evaluations sample as they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.episodes import Episodes, EpisodeSource, GameEvaluation
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.data.selection import Validation
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.prompts.action import ActionPrompt
from rwml_lightning.schema import EpisodeBatch, Sampling
from support.rewards import LetterReward
from support.worlds import ACTION_PROMPT, make_world

UNTRAINABLE = [
    (Sampling(8, top_p=0.9), r"top_p is 0.9, but log-probabilities in training are those of all tokens"),
    (Sampling(8, top_p=float("nan")), "top_p is nan"),
    (Sampling(8, temperature=0.0), "temperature is 0.0; training needs a temperature above 0"),
    (Sampling(8, temperature=float("nan")), "temperature is nan"),
    (Sampling(8, temperature=float("inf")), "temperature is inf"),
]


class Asked(HFGenerator):
    """Keeps how it was asked to sample."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.samplings: list[Sampling] = []

    def generate(self, prompts: Any, sampling: Sampling, seeds: Any) -> Any:
        self.samplings.append(sampling)
        return super().generate(prompts, sampling, seeds)


@pytest.mark.parametrize(("sampling", "message"), UNTRAINABLE)
def test_predictions_to_learn_from_take_every_token(sampling: Sampling, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.predictions\.sampling\.{message}"):
        Predictions("t.parquet", LetterReward(), sampling=sampling)


@pytest.mark.parametrize(("sampling", "message"), UNTRAINABLE)
def test_episodes_to_learn_from_take_every_token(sampling: Sampling, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.episodes\.sampling\.{message}"):
        Episodes(sampling=sampling)


def test_held_out_predictions_have_a_nucleus_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    write_transitions(tmp_path / "t.parquet", make_world())
    generator = Asked(str(tiny_model), device="cpu")
    predictions = Predictions(
        str(tmp_path / "t.parquet"), LetterReward(), prompt=ACTION_PROMPT,
        sampling=Sampling(6, temperature=0.7), validation=Validation(2, temperature=0.0, top_p=0.9),
    )  # fmt: skip
    data = RolloutDataModule(generator, predictions=predictions)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.validate(WorldModelGRPO(model=str(tiny_model)), data, verbose=False)
    assert set(generator.samplings) == {Sampling(6, temperature=0.0, top_p=0.9)}


def test_evaluation_games_have_a_nucleus_of_their_own() -> None:
    asked: list[Any] = []

    class Player:
        def collect(self, *arguments: Any) -> EpisodeBatch:
            asked.append(arguments)
            return EpisodeBatch(7, 0, ())

    how = GameEvaluation(episodes_per_game=3, max_turns=4, temperature=0.2, top_p=0.8)
    episodes = Episodes(
        ActionPrompt(), Sampling(9, temperature=0.7), group_size=2, max_turns=5, validation=how
    )
    source: Any = EpisodeSource(episodes, None, EnvironmentSpec("rwml/ALFWorld-v0"), 0)  # type: ignore[arg-type]
    source.player = Player()
    source.held_out().make(7, [])
    source.training("samples", "policy_grpo").make(7, [])
    assert asked == [
        ("validation", 7, [], 3, Sampling(9, temperature=0.2, top_p=0.8), 4),
        ("policy_grpo", 7, [], 2, Sampling(9, temperature=0.7), 5),
    ]
