"""The reference policy: scored once a rollout, kept on the card or in the memory of the machine, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from rwml_lightning.modules import GRPO, WorldModelGRPO
from rwml_lightning.modules.moving import moved_to
from support.plain_grpo import make_batch
from support.training import make, run


@pytest.mark.parametrize("max_tokens", [4096, 16])
def test_the_reference_scores_each_micro_batch_once_a_rollout(
    tiny_model: Path, model: LlamaForCausalLM, max_tokens: int
) -> None:
    """``test_grpo_at_every_setting`` compares the values with a reference that is scored in each iteration."""
    found = {}
    for device in ("card", "cpu"):
        module: Any = make(
            WorldModelGRPO,
            model=str(tiny_model),
            kl_coefficient=0.3,
            num_iterations=3,
            reference_device=device,
            max_tokens_per_micro_batch=max_tokens,
        )
        calls: list[str] = []
        module.configure_model()
        module.policy.model.embed_tokens.register_forward_hook(lambda *_, calls=calls: calls.append("policy"))
        start = module.on_fit_start

        def on_fit_start(start: Any = start, module: Any = module, calls: list[str] = calls) -> None:
            start()
            (reference,) = module._reference
            reference.model.embed_tokens.register_forward_hook(lambda *_: calls.append("reference"))

        module.on_fit_start = on_fit_start
        steps, weights = run(module, [make_batch(model)])
        num_micros = calls.count("reference")
        assert (num_micros > 1) == (max_tokens == 16)
        assert calls == ["reference"] * num_micros + ["policy"] * 3 * num_micros
        found[device] = weights[-1], steps.metrics
    assert all(torch.equal(found["cpu"][0][name], value) for name, value in found["card"][0].items())
    assert [m["train/kl"] for m in found["cpu"][1]] == [m["train/kl"] for m in found["card"][1]]
    assert found["card"][1][-1]["train/kl"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_model_is_moved_for_a_block_and_its_old_tensors_are_used_again(model: LlamaForCausalLM) -> None:
    before = [tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]]
    with moved_to(torch.device("cuda:0"), model) as moved:
        assert {tensor.device.type for tensor in [*moved.parameters(), *moved.buffers()]} == {"cuda"}
    after = [*model.parameters(), *model.buffers()]
    assert [tensor.data_ptr() for tensor in after] == before
    assert {tensor.device.type for tensor in after} == {"cpu"}


def test_a_model_that_is_there_is_not_moved(model: LlamaForCausalLM) -> None:
    before = [tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]]
    with moved_to(torch.device("cpu"), model) as moved:
        assert moved is model
        assert [tensor.data_ptr() for tensor in [*moved.parameters(), *moved.buffers()]] == before


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="reference_device is 'disk'; it must be card or cpu"):
        GRPO(reference_device="disk")  # type: ignore[arg-type]
