"""What a config names and is not there ends a command in one line, before anything is done or written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from rwml_lightning.modules import LoRA, WorldModelSFT
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.preflight import (
    check_checkpoint,
    check_ranks,
    check_starting_weights,
    check_strategy,
    embedders,
)
from support.command_line import error_of
from support.runs import make_config, write_config

EMBEDDING = {
    "class_path": "rwml_lightning.rewards.EmbeddingReward",
    "init_args": {"embedder": "./no/embedder"},
}
NO_GAMES = {"id": "rwml/ALFWorld-v0", "kwargs": {"data": "/no/games"}}
FILTER = {"class_path": "rwml_callbacks.EasySampleFilter", "init_args": {"reward": EMBEDDING}}
MISSING: dict[str, tuple[dict[str, Any], str]] = {
    "init_from": (
        {"model": {"init_args": {"init_from": "/no/weights"}}},
        "model.init_from names /no/weights, which does not exist",
    ),
    "generator": (
        {"data": {"generator": {"class_path": "rwml_lightning.generation.HFGenerator", "init_args": {"model": "./no/model"}}}},
        "data.generator.init_args.model: model './no/model': no such folder",
    ),
    "server": (
        {"data": {"generator": {"class_path": "rwml_lightning.generation.VLLMServerGenerator",
                                "init_args": {"urls": ["http://127.0.0.1:9"], "max_model_len": 77}}}},
        "data.generator: http://127.0.0.1:9 does not respond (All connection attempts failed); start it with: "
        "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model ",
    ),
    "reward": ({"predictions": {"reward": EMBEDDING}}, "data.predictions.reward.init_args.embedder: model './no/embedder'"),
    "evaluator": (
        {"predictions": {"evaluator": {"class_path": "rwml_lightning.rewards.RewardByKind",
                                       "init_args": {"rewards": {"look": EMBEDDING}, "otherwise": EMBEDDING}}}},
        "data.predictions.evaluator.init_args.",
    ),
    "callback": (
        {"trainer": {"callbacks": [FILTER]}},
        "trainer.callbacks.0.init_args.reward.init_args.embedder: model './no/embedder'",
    ),
    "no reward": ({"predictions": {"reward": None}}, "data.predictions.reward is not set"),
    "transitions": (
        {"predictions": {"transitions": "/no/t.parquet"}},
        "data.predictions.transitions names /no/t.parquet, which does not exist; set data.environment and "
        "data.predictions.collection to collect it",
    ),
    "environment": (
        {"data": {"environment": NO_GAMES},
         "predictions": {"transitions": "/no/t.parquet", "collection": {"behaviour": "random"}}},
        "data.environment: data: there is no folder '/no/games'",
    ),
}  # fmt: skip
PLAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no episodes": ({}, "data.episodes is not set, but PolicySFT trains on it"),
    "nothing to play": ({"data": {"episodes": {}}}, "data.environment is not set"),
    "no games": (
        {"data": {"episodes": {}, "environment": NO_GAMES}},
        "data.environment: data: there is no folder '/no/games'",
    ),
    "nothing to imitate": (
        {"data": {"episodes": {}, "environment": {"id": "support.environments:RoomsEnv"}}},
        "data.episodes.demonstrations is not set",
    ),
}


def refused(command: str, config: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error of a command that must leave the config's folder as it was."""
    before = sorted(config.parent.rglob("*"))
    message = error_of([command, "--config", str(config), *arguments], capsys)
    assert sorted(config.parent.rglob("*")) == before
    return message.removeprefix("error: ")


def merged(model: Path, changes: dict[str, Any]) -> dict[str, Any]:
    init_args = {"model": str(model), **changes.get("model", {}).get("init_args", {})}
    return {**changes, "model": {**changes.get("model", {}), "init_args": init_args}}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("command", "case"),
    [
        *(("fit", case) for case in MISSING),
        *(("validate", case) for case in MISSING if case != "callback"),  # which only training uses
    ],
)
def test_what_is_not_there(
    command: str, case: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = MISSING[case]
    config = write_config(tmp_path, tiny_model, **merged(tiny_model, changes))
    assert refused(command, config, capsys).startswith(message)


@pytest.mark.heavy
@pytest.mark.parametrize("case", PLAYS)
def test_what_a_policy_needs(
    case: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, message = PLAYS[case]
    model = {"class_path": "rwml_lightning.modules.PolicySFT", "init_args": {"model": str(tiny_model)}}
    config = make_config(tmp_path, tiny_model, **changes, model=model)
    assert refused("fit", config, capsys).startswith(message)


@pytest.mark.heavy
def test_demonstrations_are_not_collected_for_weights_that_are_not_there(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init_args = {"model": str(tiny_model), "init_from": "/no/weights"}
    data = {
        "environment": {"id": "support.environments:RoomsEnv"},
        "predictions": None,
        "episodes": {"demonstrations": {"path": str(tmp_path / "d.parquet")}},
    }
    model = {"class_path": "rwml_lightning.modules.PolicySFT", "init_args": init_args}
    message = refused("fit", make_config(tmp_path, tiny_model, data=data, model=model), capsys)
    assert message == "model.init_from names /no/weights, which does not exist"


@pytest.mark.heavy
def test_collect_looks_for_the_model_only_where_it_acts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rooms = {"environment": {"id": "support.environments:RoomsEnv"}}
    by_model = {"collection": {"behaviour": "model"}}
    config = make_config(tmp_path, "./no/model", data=rooms, predictions=by_model)
    assert refused("collect", config, capsys).startswith("model.init_args.model: model './no/model'")
    config = make_config(tmp_path, "./no/model", data={"environment": NO_GAMES}, predictions=by_model)
    assert refused("collect", config, capsys).startswith(
        "data.environment: data: there is no folder '/no/games'"
    )


@pytest.mark.heavy
@pytest.mark.parametrize("command", ["evaluate", "audit", "what_if"])
def test_commands_without_the_configs_model_look_for_its_embedder(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, Path("./no/model"), predictions={"reward": EMBEDDING})
    arguments = ["--models", "x"] if command == "evaluate" else []
    assert refused(command, config, capsys, *arguments).startswith(
        "data.predictions.reward.init_args.embedder:"
    )


@pytest.mark.heavy
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("trainer", "message"),
    [({"accelerator": "gpu"}, "trainer.accelerator is 'gpu' and trainer.devices is 'auto': No supported gpu backend found!"),
     ({"accelerator": "cuda", "devices": 8}, "trainer.accelerator is 'cuda' and trainer.devices is 8: "),
     ({"accelerator": "cuda", "strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"}},
      "trainer.accelerator is 'cuda' and trainer.devices is 'auto': "),
     ({"precision": "bf16-true"}, "trainer.precision is bf16-true, which rounds trained weights too coarsely")],
)  # fmt: skip
def test_devices_that_are_not_there(
    trainer: dict[str, Any],
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, tiny_model, trainer=trainer)
    assert refused("fit", config, capsys).startswith(message)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "strategy",
    ["deepspeed", "ddp_spawn", {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}],
)
def test_other_strategies_are_refused(
    strategy: Any, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = strategy if isinstance(strategy, str) else strategy["class_path"]
    message = refused("fit", write_config(tmp_path, tiny_model, trainer={"strategy": strategy}), capsys)
    assert message.startswith(f"trainer.strategy is '{name}', but takes auto, ddp or fsdp")


@pytest.mark.parametrize(
    "strategy", ["rwml_lightning.parallel.Replicated", "rwml_lightning.parallel.Sharded"]
)
def test_own_strategies_can_have_options(strategy: str) -> None:
    check_strategy(Namespace(class_path=strategy))


def test_every_rank_needs_a_card_for_its_engine(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    module: Any = SimpleNamespace(reads="predictions", on_policy=True)
    data: Any = SimpleNamespace(
        generator=SimpleNamespace(tensor_parallel_size=2), predictions=SimpleNamespace(prompts_per_step=3)
    )
    check_ranks(1, module, data)
    with pytest.raises(ValueError, match="each of the 4 ranks starts an engine on its own card"):
        check_ranks(4, module, data)
    data.generator.tensor_parallel_size = 1
    check_ranks(3, module, data)
    assert not caplog.messages
    check_ranks(4, module, data)
    assert caplog.messages == [
        "data.predictions.prompts_per_step is 3, so that some of 4 ranks roll out nothing"
    ]


@pytest.mark.heavy
def test_epochs_are_refused(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, tiny_model, trainer={"max_epochs": 3})
    assert refused("fit", config, capsys).startswith("trainer.max_epochs is 3, but")


@pytest.mark.parametrize(
    ("setting", "fits"),
    [(None, False), (LoRA(rank=4), True), (LoRA(rank=4, dropout=0.1), True), (LoRA(rank=4, alpha=64), False),
     (LoRA(rank=8), False), (LoRA(rank=4, target_modules=["q_proj"]), False)],
)  # fmt: skip
def test_weights_to_start_from_are_those_of_the_model(
    setting: LoRA | None, fits: bool, tiny_model: Path, tmp_path: Path
) -> None:
    saved = WorldModelSFT(model=str(tiny_model), lora=LoRA(rank=4))
    saved.configure_model()
    checkpoint: dict[str, Any] = {"state_dict": saved.state_dict()}
    saved.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    module = WorldModelSFT(model=str(tiny_model), lora=setting, init_from=str(tmp_path / "a.ckpt"))
    if fits:
        check_starting_weights(module)
        check_checkpoint(str(tmp_path / "a.ckpt"), module)
    else:
        with pytest.raises(
            ValueError,
            match=r"model\.init_from names .*a\.ckpt, which holds the weights of another model or LoRA",
        ):
            check_starting_weights(module)


def test_adapters_are_not_scaled_otherwise_than_they_were_trained(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    saved = WorldModelSFT(model=str(tiny_model), lora=LoRA(rank=4, alpha=8))
    saved.configure_model()
    checkpoint: dict[str, Any] = {"state_dict": saved.state_dict()}
    saved.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    own = LoRA(rank=4, alpha=64)
    refusal = rf"{path},? .*of another model or LoRA setting: model\.lora\.alpha was 8 and is 64"
    module = WorldModelSFT(model=str(tiny_model), lora=own, init_from=str(path))
    with pytest.raises(ValueError, match=rf"model\.init_from names {refusal}"):
        check_starting_weights(module)
    with pytest.raises(ValueError, match=rf"--ckpt_path names {refusal}"):
        check_checkpoint(str(path), module)
    with pytest.raises(ValueError, match=refusal.replace(",?", "")):
        load_policy(str(tiny_model), lora=own, init_from=str(path))


def test_embedders_are_found_wherever_they_stand() -> None:
    local = Namespace(class_path="x", init_args=Namespace(embedder="a", server=None))
    remote = Namespace(class_path="x", init_args=Namespace(embedder="b", server=Namespace(model="m")))
    both = Namespace(class_path="y", init_args=Namespace(rewards={"near": local, "far": remote}))
    assert list(embedders(both, "r")) == [("r.init_args.rewards.near.init_args.embedder", "a")]
    nested = Namespace(class_path="z", init_args=Namespace(reward=both, min_agreement=None))
    assert [name for _, name in embedders([nested, local], "r")] == ["a", "a"]
    assert list(embedders(Namespace(class_path="support.rewards.LetterReward"), "r")) == []
    assert list(embedders(None, "r")) == []
