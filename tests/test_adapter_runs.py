"""Whole runs with adapters and weights below float32: what trains, and what is refused before anything is done."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rwml_lightning.cli import main
from rwml_lightning.generation import VLLMGenerator
from rwml_lightning.models import load_causal_lm
from support.models import teach, write_tiny_model
from support.runs import metrics_of, write_config
from support.worlds import make_world


def model_section(model: Path, **arguments: Any) -> dict[str, Any]:
    return {
        "init_args": {
            "model": str(model),
            "dtype": "bfloat16",
            "optimizer": {"learning_rate": 1e-3},
            **arguments,
        }
    }


@pytest.mark.heavy
def test_adapters_train_on_a_bfloat16_base_from_warm_up_to_export(tiny_model: Path, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8}
    config = write_config(
        tmp_path,
        tiny_model,
        model=model_section(tiny_model, lora=lora, grpo={"kl_coefficient": 0.01}),
        warm_up={"num_transitions": 8, "batch_size": 4, "learning_rate": 1e-2},
    )
    main(["fit", "--config", str(config)])
    run = tmp_path / "runs" / "r"
    start, end = (load_file(run / name / "model.safetensors") for name in ("warm_up", "export"))
    assert all(tensor.dtype == torch.bfloat16 for tensor in [*start.values(), *end.values()])
    original = load_causal_lm(tiny_model, "bfloat16").state_dict()
    moved = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(start[moved], original[moved])  # the warm-up trained adapters and merged them
    assert not torch.equal(end[moved], start[moved])
    assert torch.equal(end["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "model.dtype is bfloat16: nearly every step of AdamW is smaller"),
        ({"lora": {"target_modules": ["embed_tokens"]}}, "adapters on model.embed_tokens cannot be merged"),
    ],
)
def test_what_cannot_train_or_be_exported_is_refused_before_the_warm_up(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: dict[str, Any],
    reason: str,
) -> None:
    config = write_config(
        tmp_path, tiny_model, model=model_section(tiny_model, **arguments), warm_up={"num_transitions": 8}
    )
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "--config", str(config)])
    assert exit_info.value.code == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error:")]
    assert reason in line
    assert not (tmp_path / "runs" / "r" / "warm_up").exists()
    assert not (tmp_path / "runs" / "r" / "metrics.csv").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_with_vllm_sends_the_base_of_each_stage_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("vllm")
    sent: list[str] = []

    def watch(name: str) -> None:
        original = getattr(VLLMGenerator, name)

        @wraps(original)  # the command line compares the signature with the protocol's
        def watched(*given: Any) -> None:
            sent.append(name)
            original(*given)

        monkeypatch.setattr(VLLMGenerator, name, watched)

    for name in ("update_weights", "update_adapters"):
        watch(name)
    folder = tmp_path / "model"
    world = make_world()
    model, tokenizer = write_tiny_model(folder, world, 340, num_attention_heads=1)
    teach(model, tokenizer, [t for t in world if t.split == "train"], num_steps=60)
    model.save_pretrained(folder)
    generator = {
        "class_path": "rwml_lightning.generation.VLLMGenerator",
        "init_args": {"max_model_len": 128, "kv_cache_gib": 0.1, "enforce_eager": True},
    }
    config = write_config(
        tmp_path,
        folder,
        model=model_section(folder, lora={"rank": 4, "alpha": 8}),
        data={"generator": generator},
        predictions={
            "reward": {"class_path": "support.rewards.LetterReward", "init_args": {"mode": "cosine"}}
        },
        warm_up={"num_transitions": 8, "batch_size": 4, "learning_rate": 1e-2},
    )
    main(["fit", "--config", str(config)])
    assert not [line for line in caplog.messages if "merged adapters" in line]
    # Both stages send the base, random adapters for the check, and the new adapters; the second then sends two steps.
    stage = ["update_weights", "update_adapters", "update_adapters"]
    assert sent == [*stage, *stage, "update_adapters", "update_adapters"]
    run = tmp_path / "runs" / "r"
    start, end = (load_file(run / name / "model.safetensors") for name in ("warm_up", "export"))
    moved = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(end[moved], start[moved])
    gaps = [value for _, _, name, value in metrics_of(run) if name == "train/sync_gap"]
    assert len(gaps) == 2
    assert max(gaps) < 0.05  # the trainer computes in bfloat16, and the engine in float32
