"""Two models side by side: where weights belong, what is counted, and the command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rwml_lightning.changed_weights import (
    Change,
    SafetensorsFolder,
    change_shares,
    compare_weights,
    starting_weights,
    weight_place,
)
from rwml_lightning.cli import main
from rwml_lightning.modules import LoRA, WorldModelSFT


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.embed_tokens.weight", (None, "embeddings")),
        ("model.layers.0.self_attn.q_proj.weight", (0, "q")),
        ("model.layers.11.self_attn.k_proj.bias", (11, "k")),
        ("model.layers.3.self_attn.v_proj.weight", (3, "v")),
        ("model.layers.3.self_attn.o_proj.weight", (3, "o")),
        ("model.layers.3.self_attn.q_norm.weight", (3, "norms")),
        ("model.layers.3.post_attention_layernorm.weight", (3, "norms")),
        ("model.layers.3.mlp.gate_proj.weight", (3, "mlp")),
        ("model.layers.3.mlp.experts.7.down_proj.weight", (3, "mlp")),
        ("model.layers.3.self_attn.qkv_proj.weight", (3, "qkv")),
        ("model.norm.weight", (None, "norms")),
        ("lm_head.weight", (None, "head")),
        ("transformer.wte.weight", (None, "embeddings")),
        ("transformer.h.5.ln_1.weight", (5, "norms")),
        ("transformer.h.5.attn.c_attn.weight", (5, "qkv")),
        ("transformer.h.5.attn.c_proj.weight", (5, "o")),
        ("transformer.h.5.mlp.c_proj.weight", (5, "mlp")),
        ("gpt_neox.layers.2.attention.query_key_value.weight", (2, "qkv")),
        ("gpt_neox.layers.2.attention.dense.weight", (2, "o")),
        ("gpt_neox.embed_in.weight", (None, "embeddings")),
        ("model.layers.2.mixer.A_log", (2, "other")),
    ],
)
def test_places(name: str, place: tuple[int | None, str]) -> None:
    assert weight_place(name) == place


def test_rows_and_shares_by_hand() -> None:
    before = {
        "h.0.q_proj.weight": torch.zeros(2, 2),
        "h.1.q_proj.weight": torch.ones(4),
        "h.0.mlp.up.weight": torch.ones(3),
        "h.0.mlp.down.weight": torch.ones(3),
        "embed_tokens.weight": torch.ones(6),
    }
    after = {f"model.{name}" if "0" in name else name: tensor.clone() for name, tensor in before.items()}
    after["model.h.0.q_proj.weight"][0, 0] = 1
    after["model.h.0.mlp.up.weight"] += 1
    changes = compare_weights(before, after.items())
    assert changes == [
        Change(0, "q", 1, 4),
        Change(0, "mlp", 3, 6),
        Change(1, "q", 0, 4),
        Change(None, "embeddings", 0, 6),
    ]
    assert change_shares(changes) == {"all": 4 / 20, "q": 1 / 8, "mlp": 0.5, "embeddings": 0.0}


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"b": torch.ones(2)}, "the weight b has no counterpart"),
        (
            {"a": torch.ones(3)},
            r"the weight a does not match the initial weight: the shapes differ: \(2,\) before",
        ),
    ],
)
def test_another_model_is_refused(after: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_weights({"a": torch.ones(2)}, after.items())


def test_a_folder_gives_every_weight_of_every_file(tiny_model: Path, tmp_path: Path) -> None:
    whole = load_file(tiny_model / "model.safetensors")
    names = sorted(whole)
    save_file({name: whole[name] for name in names[:5]}, tmp_path / "model-1.safetensors")
    save_file({name: whole[name] for name in names[5:]}, tmp_path / "model-2.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert sorted(folder) == names
    assert all(torch.equal(folder[name], whole[name]) for name in names)


@pytest.mark.parametrize("init_from", [False, True])
def test_a_stage_starts_from_a_folder(tiny_model: Path, init_from: bool) -> None:
    started = (
        starting_weights("unused", str(tiny_model)) if init_from else starting_weights(str(tiny_model), None)
    )
    assert dict(started).keys() == load_file(tiny_model / "model.safetensors").keys()


@pytest.mark.parametrize("lora", [None, LoRA(4, 8)])
def test_a_stage_starts_from_a_checkpoint(tiny_model: Path, tmp_path: Path, lora: LoRA | None) -> None:
    """As files spell its weights, adapters merged; so nothing has changed at the start of the next stage."""
    module = WorldModelSFT(model=str(tiny_model), lora=lora)
    module.configure_model()
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "x.ckpt")
    started = starting_weights("unused", str(tmp_path / "x.ckpt"))
    same = compare_weights(started, module.generator_tensors(), tolerance=0)
    assert change_shares(same)["all"] == 0
    assert sum(change.total for change in same) == sum(
        tensor.numel() for tensor in load_file(tiny_model / "model.safetensors").values()
    )
    earlier = compare_weights(SafetensorsFolder(tiny_model), module.generator_tensors())
    assert change_shares(earlier)["q"] > 0.9


@pytest.mark.heavy
def test_the_command_compares_two_folders(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = tmp_path / "after"
    shutil.copytree(tiny_model, after)
    weights = load_file(after / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.weight"] *= 2
    save_file(weights, after / "model.safetensors", {"format": "pt"})
    main(["weight_change", "--before", str(tiny_model), "--after", str(after)])
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1:3] for row in rows if row[:1] == ["0"]] == [["0.00", "0.00"]]
    assert [row[2] for row in rows if row[:1] == ["1"]] == ["100.00"]
    assert [row[2] for row in rows if row[:1] == ["all"]] == ["50.00"]
    with pytest.raises(SystemExit):
        main(["weight_change", "--before", str(tmp_path), "--after", str(after)])
    assert "has no config.json" in capsys.readouterr().err
