"""AdamW in low precision against torch's AdamW on float32 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rwml_lightning.modules import LoRA, WorldModelSFT
from rwml_lightning.modules.adamw import LowPrecisionAdamW
from rwml_lightning.modules.exporting import export_policy
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.schema import LabelledBatch
from support.training import LABELS, fit, make

BATCHES = [LabelledBatch(step, LABELS) for step in range(6)]
SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
LOW: dict[str, Any] = {"dtype": "bfloat16", "stochastic_rounding": True, "moments": "int8"}


def gradients(shape: tuple[int, ...], num_steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    drift = torch.randn(shape, generator=generator)
    return [drift + torch.randn(shape, generator=generator) for _ in range(num_steps)]


def trained(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, steps: list[torch.Tensor]
) -> torch.Tensor:
    for gradient in steps:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
    return parameter.detach()


def parameters(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[nn.Parameter, nn.Parameter]:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    return nn.Parameter(start.to(dtype)), nn.Parameter(start.float())


@pytest.mark.parametrize("chunk", [7, 1 << 18])
def test_in_float32_it_is_torchs_adamw(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwml_lightning.modules.adamw._CHUNKS", {"cpu": chunk})
    own, other = parameters((3, 32))
    steps = gradients((3, 32), 5)
    found = trained(LowPrecisionAdamW([own], **SETTINGS), own, steps)
    expected = trained(torch.optim.AdamW([other], **SETTINGS), other, steps)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_moments_of_8_bits_take_nearly_the_same_steps() -> None:
    own, other = parameters((64, 256))
    start, steps = own.detach().clone(), gradients((64, 256), 20)
    optimizer = LowPrecisionAdamW([own], moments="int8", **SETTINGS)
    found = trained(optimizer, own, steps) - start
    expected = trained(torch.optim.AdamW([other], **SETTINGS), other, steps) - start
    assert float((found - expected).norm() / expected.norm()) < 0.02
    state = optimizer.state[own]
    kept = sum(value.numel() * value.element_size() for name, value in state.items() if name != "step")
    assert kept == own.numel() * 2 * (1 + 4 / 256)


@pytest.mark.parametrize("shape", [(5,), (4, 7)])
def test_small_parameters_keep_moments_in_float32(shape: tuple[int, ...]) -> None:
    own, other = parameters(shape)
    steps = gradients(shape, 4)
    found = trained(LowPrecisionAdamW([own], moments="int8", **SETTINGS), own, steps)
    expected = trained(torch.optim.AdamW([other], **SETTINGS), other, steps)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_small_steps_on_bfloat16_weights_count_in_the_mean_with_stochastic_rounding_alone() -> None:
    """At 1e-6, as in the paper: few weights would change at all, and the policy would stay as it was."""
    settings = {**SETTINGS, "lr": 1e-6, "weight_decay": 0.0}
    steps = [gradient.abs() for gradient in gradients((512, 512), 20)]  # all move down
    plain, masters = parameters((512, 512), torch.bfloat16)
    start = masters.detach().clone()
    expected = trained(torch.optim.AdamW([masters], **settings), masters, steps) - start
    assert float((expected != 0).float().mean()) > 0.9
    lost = trained(torch.optim.AdamW([plain], **settings), plain, steps)
    assert float((lost != start.bfloat16()).float().mean()) < 0.05
    assert float((lost.float() - start).mean()) > 0.5 * float(expected.mean())
    rounded, _ = parameters((512, 512), torch.bfloat16)
    found = trained(LowPrecisionAdamW([rounded], moments="int8", **settings), rounded, steps).float() - start
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.1)


def test_bfloat16_weights_hardly_change_under_plain_adamw(tiny_model: Path) -> None:
    """The refused combination on a whole model, against the one that is let through."""
    changed = {}
    for rounding in (False, True):
        module = make(
            WorldModelSFT, model=str(tiny_model), learning_rate=1e-6, **{**LOW, "stochastic_rounding": True}
        )
        module.configure_model()
        if not rounding:
            module.optimizer = Optimizer(1e-6)
            module.check_precision = lambda precision: None  # type: ignore[method-assign]
        before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
        fit(module, [LabelledBatch(step, LABELS) for step in range(20)])
        after = dict(module.policy.named_parameters())
        differing = sum(int((after[name] != value).sum()) for name, value in before.items())
        changed[rounding] = differing / sum(value.numel() for value in before.values())
    assert changed[False] < 0.05
    assert changed[True] > 2 * changed[False]


@pytest.mark.parametrize("moments", ["float32", "int8"])
def test_a_resumed_run_takes_the_same_steps_bit_for_bit(
    tiny_model: Path, tmp_path: Path, moments: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**LOW, "moments": moments, "model": str(tiny_model), "learning_rate": 1e-3}
    torch.manual_seed(5)
    whole = make(WorldModelSFT, **settings)
    fit(whole, BATCHES)
    torch.manual_seed(5)
    first = make(WorldModelSFT, **settings)
    fit(first, BATCHES[:2])
    first.trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(5)
    torch.rand(3)  # other random numbers since the seed
    second = make(WorldModelSFT, **settings)
    fit(second, BATCHES, ckpt_path=tmp_path / "a.ckpt")
    assert second.policy_version == whole.policy_version == 6
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], value), name
    expected = whole.trainer.optimizers[0].state_dict()["state"]
    found = second.trainer.optimizers[0].state_dict()["state"]
    assert {value.dtype for state in found.values() for value in state.values()} >= {torch.float32}
    for number, state in expected.items():
        for name, value in state.items():
            assert found[number][name].dtype == value.dtype
            assert torch.equal(found[number][name], value)


def test_the_seed_of_the_run_chooses_the_rounding(tiny_model: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        module = make(WorldModelSFT, model=str(tiny_model), learning_rate=1e-4, **LOW)
        fit(module, BATCHES[:2])
        found.append(module.policy.state_dict()["model.layers.0.mlp.down_proj.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_gradients_of_bfloat16_weights_are_bfloat16(tiny_model: Path) -> None:
    module = make(WorldModelSFT, model=str(tiny_model), learning_rate=1e-4, **LOW)
    (found,) = fit(module, BATCHES[:1]).gradients
    assert {gradient.dtype for gradient in found.values()} == {torch.bfloat16}


def test_adapters_on_a_bfloat16_base_stay_float32_and_are_exported_as_trained(
    tiny_model: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    module = make(WorldModelSFT, model=str(tiny_model), dtype="bfloat16", lora=LoRA(4, 8), learning_rate=1e-2)
    fit(module, BATCHES)
    policy: Any = module.policy
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    layer = policy.get_base_model().model.layers[0].mlp.down_proj
    change = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (8 / 4)
    expected = layer.base_layer.weight.float() + change
    assert float((expected - layer.base_layer.weight).abs().max().detach()) > 1e-3
    export_policy(policy, tiny_tokenizer, tmp_path / "out", [5, 6, 7, 8])
    from safetensors.torch import load_file

    written = load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert written.dtype == torch.bfloat16
    torch.testing.assert_close(written.float(), expected.detach(), rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bfloat16"}, r"dtype is bfloat16: .*stochastic_rounding to true"),
        ({"dtype": "bfloat16", "moments": "int8"}, r"dtype is bfloat16: .*stochastic_rounding to true"),
        ({"dtype": "float16", "stochastic_rounding": True}, r"dtype is float16, in which"),
        ({"stochastic_rounding": True}, r"stochastic_rounding is true, but model\.dtype is float32"),
        (
            {"stochastic_rounding": True, "lora": LoRA()},
            r"stochastic_rounding is true, but model\.dtype is float32",
        ),
    ],
)
def test_weights_that_would_not_train_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(WorldModelSFT, model="none", **settings).check_precision("bf16-mixed")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"moments": "int8"},
        LOW,
        {**LOW, "moments": "float32"},
        {"dtype": "bfloat16", "lora": LoRA()},
        {**LOW, "lora": LoRA()},
    ],
)
def test_weights_that_train_are_let_through(settings: dict[str, Any]) -> None:
    for precision in ("bf16-mixed", "32-true"):
        make(WorldModelSFT, model="none", **settings).check_precision(precision)


def test_unknown_moments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"moments is 'int4'; it must be float32 or int8"):
        Optimizer(moments="int4")  # type: ignore[arg-type]
