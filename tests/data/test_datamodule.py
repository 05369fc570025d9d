"""The DataModule: which sources a stage reads, prepares and is evaluated on, and where a resumed loader goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rwml_lightning.data import datamodule
from rwml_lightning.data.collection import Collection
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.demonstrations import Demonstrations
from rwml_lightning.data.episodes import Episodes, EpisodeSource
from rwml_lightning.data.loader import Draw
from rwml_lightning.data.predictions import Predictions, PredictionSource
from rwml_lightning.envs import EnvironmentSpec
from rwml_lightning.prompts.policy import PolicyClient
from support.recorder import Recorder
from support.rewards import LetterReward

Mark: Any = SimpleNamespace
SPEC = EnvironmentSpec("support.environments.RoomsEnv", {"folder": "x"})
PREDICTIONS, EPISODES = Predictions("t.parquet", LetterReward()), Episodes()


def make_data(reads: str = "predictions", learns: str = "samples", **settings: Any) -> Any:
    data: Any = RolloutDataModule(Mark(close=Recorder()), **settings)
    module = Mark(
        stage="s",
        reads=reads,
        learns=learns,
        init_from=None,
        configure_model=Recorder(),
        may_roll_ahead=Recorder(),
    )
    data.trainer = Mark(lightning_module=module)
    return data


class Given:
    """Stands for a source of some items."""

    def __init__(self, name: str, num_items: int = 5, batch_size: int = 2, probe: Any = ()) -> None:
        self.name, self.probe = name, list(probe)
        self.draw = Draw(
            [f"{name}{n}" for n in range(num_items)], batch_size, lambda step, own: (step, list(own)), 2
        )
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments))

    def training(self, *arguments: Any) -> Any:
        self.calls.append(("training", *arguments))
        return self.draw

    def held_out(self) -> Any:
        return self.draw

    def probe_ids(self) -> list[int]:
        return self.probe


def make_given(reads: str = "predictions", learns: str = "samples", seed: int = 0, **given: Any) -> Any:
    data = make_data(reads, learns, seed=seed)
    data.__dict__["sources"] = given or {"predictions": Given("p"), "episodes": Given("e")}
    return data


def test_sources_are_those_that_the_config_gives_predictions_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Recorder("policy")
    monkeypatch.setattr(PolicyClient, "of", asked)
    data = make_data(
        environment=SPEC, predictions=PREDICTIONS, episodes=EPISODES, seed=4, chat_template_kwargs={"k": 1}
    )
    data.record_collection = Recorder()
    assert list(data.sources) == ["predictions", "episodes"]
    assert asked.calls == [(data.module, data.generator, {"k": 1})]
    predictions, episodes = data.sources.values()
    assert isinstance(predictions, PredictionSource)
    assert isinstance(episodes, EpisodeSource)
    assert data.prediction_source is predictions
    for source, settings in ((predictions, PREDICTIONS), (episodes, EPISODES)):
        assert (source.settings, source.policy, source.environment, source.seed) == (
            settings,
            "policy",
            SPEC,
            4,
        )
    assert predictions.record is data.record_collection
    assert list(make_data(predictions=PREDICTIONS).sources) == ["predictions"]
    assert list(make_data(environment=SPEC, episodes=EPISODES).sources) == ["episodes"]
    with pytest.raises(
        ValueError, match=r"^data\.environment is not set, but data\.episodes needs one to play"
    ):
        _ = make_data(episodes=EPISODES).sources
    assert data.need_predictions() is PREDICTIONS
    with pytest.raises(ValueError, match=r"^data\.predictions is not set"):
        make_data().need_predictions()


@pytest.mark.parametrize(
    ("reads", "learns", "told"),
    [
        ("predictions", "samples", ("samples", "samples")), ("predictions", "labels", ("labels", "samples")),
        ("episodes", "samples", ("samples", "samples")), ("episodes", "labels", ("samples", "labels")),
    ],
)  # fmt: skip
def test_every_source_is_checked_prepared_and_set_up(reads: str, learns: str, told: tuple[str, str]) -> None:
    data = make_given(reads, learns)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    for source, own in zip(data.sources.values(), told, strict=True):
        assert source.calls == [("check",), ("prepare", own), ("set_up", "fit"), ("set_up", "test")]


def test_all_sources_are_checked_before_one_is_prepared() -> None:
    order: list[Any] = []
    data = make_given()
    for source in data.sources.values():
        source.calls = order
    data.prepare_data()
    assert [call[0] for call in order] == ["check", "check", "prepare", "prepare"]


@pytest.mark.parametrize(
    ("learns", "source", "init_from", "sent"),
    [
        ("labels", "expert", "w", False), ("labels", "policy", None, False), ("labels", "policy", "w", True),
        ("labels", "reflection", "w", True), ("samples", "policy", "w", False),
    ],
)  # fmt: skip
def test_demonstrations_are_written_by_the_weights_that_learn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, learns: str, source: Any, init_from: Any, sent: bool
) -> None:
    check = Recorder()
    monkeypatch.setattr(datamodule, "WeightCheck", lambda: Mark(update=check))
    monkeypatch.setattr(EpisodeSource, "check", lambda _: None)
    monkeypatch.setattr(EpisodeSource, "probe_ids", lambda _: [1])
    prepared = Recorder()
    monkeypatch.setattr(EpisodeSource, "prepare", lambda _, learns: prepared(learns, len(check.calls)))
    settings = Episodes(demonstrations=Demonstrations(str(tmp_path / "d.parquet"), source))
    policy: Any = None
    data = make_given("episodes", learns, episodes=EpisodeSource(settings, policy, SPEC, 0))
    data.module.init_from = init_from
    data.prepare_data()
    assert data.module.configure_model.calls == [()] * sent
    assert check.calls == [(data.generator, data.module, 0, [1])] * sent
    assert prepared.calls == [(learns, int(sent))]  # the weights come first
    (tmp_path / "d.parquet").touch()
    data.prepare_data()
    assert len(check.calls) == sent


@pytest.mark.parametrize("reads", ["predictions", "episodes"])
def test_a_stage_learns_from_the_source_that_it_names_and_is_evaluated_on_all(reads: str) -> None:
    data = make_given(reads, "labels", seed=7)
    loader = data.train_dataloader()
    source = data.sources[reads]
    assert source.calls == [("training", "labels", "s")]
    assert (loader.draw, loader.seed) == (source.draw, 7)
    assert data.state_dict() == loader.state_dict()
    for loaders in (data.val_dataloader(), data.test_dataloader()):
        assert [one.draw for one in loaders] == [one.draw for one in data.sources.values()]
        assert [one.seed for one in loaders] == [None] * 2
    assert next(iter(data.val_dataloader()[1])) == (0, ["e0", "e1"])


def test_it_may_learn_from_the_first_items_alone() -> None:
    data = make_given()
    trainer = data.trainer
    with data.limited_to(num_items=3, batch_size=1, num_passes=4):
        loader = data.train_dataloader()
        assert (loader.draw.items, loader.draw.batch_size, loader.draw.num_passes) == (
            ["p0", "p1", "p2"],
            1,
            4,
        )
        assert loader.draw.make is data.sources["predictions"].draw.make
        assert [len(one.draw.items) for one in data.val_dataloader()] == [5, 5]
        data.trainer = Mark(lightning_module=trainer.lightning_module)
    assert data.trainer is trainer
    assert data.train_dataloader().draw == data.sources["predictions"].draw
    with pytest.raises(KeyError), data.limited_to(1, 1, 1):
        raise KeyError
    assert len(data.train_dataloader().draw.items) == 5


KEYS = {
    ("predictions", "samples"): (
        r"prompts_per_step",
        r"transitions, num_transitions and the EasySampleFilter",
    ),
    ("predictions", "labels"): (
        r"prompts_per_step",
        r"transitions, num_transitions and the EasySampleFilter",
    ),
    ("episodes", "samples"): (r"games_per_step", r"splits and num_games, and data\.environment"),
    ("episodes", "labels"): (r"demonstrations\.labels_per_step", r"demonstrations"),
}


@pytest.mark.parametrize(("reads", "learns"), KEYS)
def test_a_resumed_loader_goes_on_where_it_was_if_it_reads_the_same(reads: str, learns: str) -> None:
    size, items = KEYS[reads, learns]
    data = make_given(reads, learns, seed=3)
    assert data.state_dict() == {}
    early = (
        data.train_dataloader()
    )  # as for the steps of a learning rate schedule, before the checkpoint is read
    state = {**early.state_dict(), "step": 2}
    assert state.keys() == {"step", "seed", "batch_size", "num_items", "items"}
    assert (state["seed"], state["batch_size"], state["num_items"]) == (3, 2, 5)
    data.load_state_dict(state)
    for loader in (early, data.train_dataloader()):
        assert (loader.step, loader.first_step) == (2, 2)
    for changes, message in (
        (
            {"seed": 4},
            r"^seed_everything is 3, but was 4 when the checkpoint was saved: restore the earlier setting",
        ),
        ({"batch_size": 1}, rf"^data\.{reads}\.{size} is 2, but was 1 when the checkpoint was saved"),
        (
            {"items": "x", "num_items": 6},
            rf"^the 5 training items differ from the 6 .*; they depend on data\.{reads}\.{items}",
        ),
        (
            {"step": 7},
            rf"^data\.{reads}\.num_passes is 2, so training ends after batch 6, but the checkpoint was saved after batch 7",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            data.load_state_dict({**state, **changes})
        with pytest.raises(ValueError, match=message):
            data.train_dataloader()
    data.load_state_dict({**state, "step": 6})
    assert list(data.train_dataloader()) == []


def test_the_probe_is_that_of_the_first_source_that_has_one() -> None:
    assert make_given(predictions=Given("p", probe=[1]), episodes=Given("e", probe=[2])).probe_ids() == [1]
    assert make_given(predictions=Given("p"), episodes=Given("e", probe=[2])).probe_ids() == [2]


def test_what_was_opened_is_closed() -> None:
    data = make_given()
    data.close()
    assert data.generator.close.calls == [()]
    assert [source.calls for source in data.sources.values()] == [[("close",)]] * 2
    alone = make_data(predictions=PREDICTIONS)
    alone.close()
    assert alone.generator.close.calls == [()]
    assert "sources" not in alone.__dict__


def test_the_policy_of_a_collection_is_the_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    collected = Recorder()
    monkeypatch.setattr("rwml_lightning.data.predictions.collect", collected)
    monkeypatch.setattr(PolicyClient, "of", Recorder(Mark(chat="chat")))
    monkeypatch.setattr(PredictionSource, "check", lambda _: None)
    wanted = Predictions(str(tmp_path / "t.parquet"), LetterReward(), Collection("model"))
    data = make_data(environment=SPEC, predictions=wanted, seed=6)
    data.prepare_data()
    ((path, spec, collection, seed, policy, record),) = collected.calls
    assert (path, spec, collection, seed, record) == (wanted.path, SPEC, wanted.collection, 6, None)
    assert policy() is data.prediction_source.policy
