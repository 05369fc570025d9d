"""A stored result of the easy-sample filter is made anew when anything that it depends on has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rwml_callbacks import EasySampleFilter
from rwml_callbacks.easy_samples.fingerprint import (
    _OF_THE_MAIN_STAGE,
    digest_of_names,
    digest_of_weights,
    plain,
    similarity_settings,
)

from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules import LoRA, WorldModelGRPO
from rwml_lightning.rewards import EmbeddingReward
from rwml_lightning.rewards.server import Server
from rwml_lightning.schema import Sampling
from support.rewards import LetterReward
from support.training import make
from support.worlds import ACTION_PROMPT, make_world

WORLD = make_world()


class OtherGenerator(HFGenerator):
    """Samples otherwise."""


def settings(
    model: str,
    data: dict[str, Any] | None = None,
    policy: dict[str, Any] | None = None,
    own: dict[str, Any] | None = None,
    taught: int = 4,
    judged: int = 20,
    precision: str = "32-true",
) -> dict[str, Any]:
    """What the filter says that its predictions depend on."""
    arguments = {"reward": LetterReward(), "prompt": ACTION_PROMPT, "sampling": Sampling(20), **(data or {})}
    generator = arguments.pop("generator", HFGenerator(model))
    shared = {name: arguments.pop(name) for name in ("chat_template_kwargs", "seed") if name in arguments}
    return EasySampleFilter(**(own or {}))._prediction_settings(
        make(WorldModelGRPO, model=model, **(policy or {})),
        RolloutDataModule(generator, predictions=Predictions("t.parquet", **arguments), **shared),
        WORLD[:taught],
        WORLD[:judged],
        precision,
    )


CHANGES: dict[str, Callable[[str], dict[str, Any]]] = {
    "prompt": lambda _: {"data": {"prompt": replace(ACTION_PROMPT, system="Predict.")}},
    "history": lambda _: {"data": {"prompt": replace(ACTION_PROMPT, history_turns=1)}},
    "max_tokens": lambda _: {"data": {"sampling": Sampling(21)}},
    "temperature": lambda _: {"data": {"sampling": Sampling(20, temperature=0.7)}},
    "reward": lambda _: {"own": {"reward": LetterReward()}},
    "tau_d": lambda _: {"own": {"tau_d": 0.2}},
    "embedder": lambda _: {"data": {"reward": EmbeddingReward("a")}},
    "generator": lambda model: {"data": {"generator": OtherGenerator(model)}},
    "end_tokens": lambda model: {"data": {"generator": HFGenerator(model, end_token_ids=[7])}},
    "template": lambda _: {"data": {"chat_template_kwargs": {"enable_thinking": False}}},
    "lora": lambda _: {"policy": {"lora": LoRA(rank=2)}},
    "dtype": lambda _: {"policy": {"dtype": "bfloat16"}},
    "num_samples": lambda _: {"own": {"num_samples": 3}},
    "learning_rate": lambda _: {"own": {"learning_rate": 1e-3}},
    "batch_size": lambda _: {"own": {"batch_size": 3}},
    "num_passes": lambda _: {"own": {"num_passes": 3}},
    "seed": lambda _: {"own": {"seed": 3}},
    "taught": lambda _: {"taught": 5},
    "judged": lambda _: {"judged": 21},
    "precision": lambda _: {"precision": "bf16-mixed"},
}


def test_names_of_settings_stay_since_stored_results_have_them(tiny_model: Path) -> None:
    """A result that is stored under other names is made anew, which takes a training run and all predictions."""
    own = {"num_samples", "learning_rate", "batch_size", "num_passes", "seed", "taught", "judged", "reward"}
    models = {"model", "init_from", "lora", "dtype", "precision", "chat", "generator", "end_tokens"}
    found = settings(str(tiny_model))
    assert found.keys() == own | models | {"prompt", "sampling", "chat_template_kwargs"}
    assert found["init_from"] is None
    assert found["reward"] == {"class": "LetterReward", "tau_d": 0.1}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_noticed(name: str, tiny_model: Path) -> None:
    model = str(tiny_model)
    before = settings(model)
    assert before == json.loads(json.dumps(settings(model)))
    assert settings(model, **CHANGES[name](model)) != before


def test_weights_to_start_from_count_by_their_content(tiny_model: Path, tmp_path: Path) -> None:
    model, file = str(tiny_model), tmp_path / "a.ckpt"
    found = [settings(model)]
    for value in (0.0, 1.0, 0.0):
        torch.save({"x": torch.tensor(value)}, file)
        found.append(settings(model, policy={"init_from": str(file)}))
    assert found[1] == found[3]
    assert found[0] != found[1] != found[2] != found[0]


def test_embedding_servers_are_told_apart() -> None:
    near, far = (plain(EmbeddingReward(server=Server(model=name))) for name in ("near", "far"))
    assert near != far


def test_a_setting_of_predictions_counts_unless_it_is_known_not_to() -> None:
    """Every argument that is listed as of no concern exists, so that the list cannot outlive them."""
    known = {field.name for field in fields(Predictions)}
    assert known >= _OF_THE_MAIN_STAGE
    assert {"prompt", "sampling"} <= known - _OF_THE_MAIN_STAGE


def test_settings_that_change_no_prediction_do_not_count(tiny_model: Path) -> None:
    model = str(tiny_model)
    data = {"num_passes": 9, "group_size": 3, "seed": 4, "generator": HFGenerator(model, max_num_seqs=2)}
    policy = {"learning_rate": 0.1, "max_tokens_per_micro_batch": 9}
    own = {"target_share": 0.9, "keep_probability": 0.5, "prompts_per_batch": 2}
    assert settings(model, data, policy, own) == settings(model)


class Setting:
    """Keeps one argument behind an underscore, and one not at all."""

    def __init__(self, shown: object, hidden: int = 2, lost: int = 3) -> None:
        self.shown = shown
        self._hidden = hidden


def test_any_part_of_a_config_is_plain() -> None:
    value = {1: (1, 2.5, "a", None, True), "own": Setting([Setting("x", 5)])}
    assert plain(value) == {
        "1": [1, 2.5, "a", None, True],
        "own": {
            "class": "Setting",
            "shown": [{"class": "Setting", "shown": "x", "hidden": 5}],
            "hidden": 2,
        },
    }


def test_of_a_reward_only_the_similarity_counts() -> None:
    assert similarity_settings(
        EmbeddingReward("a", tau_d=0.3, mode="cosine", cache_size=5, batch_size=3, device="cpu")
    ) == similarity_settings(EmbeddingReward("a", tau_d=0.1, mode="threshold", cache_size=9))
    assert similarity_settings(Setting("a")) == plain(Setting("a"))
    assert {"tau_d", "mode", "cache_size", "batch_size", "device"}.isdisjoint(
        similarity_settings(EmbeddingReward("a"))
    )


def test_weights_of_a_folder_count_whatever_their_place(tmp_path: Path) -> None:
    found = []
    for number, (first, second, note) in enumerate([(b"a", b"b", "x"), (b"a", b"b", "y"), (b"b", b"a", "x")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model-1.safetensors").write_bytes(first)
        (folder / "model-2.safetensors").write_bytes(second)
        (folder / "notes.txt").write_text(note)
        found.append(digest_of_weights(str(folder)))
    assert found[0] == found[1] != found[2]
    assert digest_of_weights(None) is None


def test_transitions_count_by_name_in_any_order() -> None:
    assert digest_of_names(WORLD[:3]) == digest_of_names(WORLD[2::-1])
    assert len({digest_of_names(WORLD[:count]) for count in range(4)}) == 4
