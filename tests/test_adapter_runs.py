"""Whole runs with adapters and weights below float32: what trains, and what is refused before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rwml_lightning.cli import main
from rwml_lightning.models import load_causal_lm
from support.runs import write_config


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
