"""Adapters beside the base weights in vLLM's real engine, against the trainer and against the merged model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from rwml_lightning.generation import VLLMGenerator, WeightCheck, WeightSyncError
from rwml_lightning.generation.base import UnsupportedAdaptersError
from rwml_lightning.generation.weight_files import SHARED_MEMORY
from rwml_lightning.modules import LoRA, WorldModelSFT
from rwml_lightning.schema import Sampling
from rwml_lightning.weights import adapter_tensors
from support.models import write_tiny_model
from support.worlds import make_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT = [(7 * i) % 300 + 5 for i in range(40)]  # longer than a block of the prefix cache
PROBE = PROMPT[:32]


class Watched(VLLMGenerator):
    """Counts the updates that bring all weights."""

    num_whole = 0

    def update_weights(self, named_tensors: Any, version: int) -> None:
        super().update_weights(named_tensors, version)
        self.num_whole += 1


def step(module: WorldModelSFT, size: float) -> None:
    with torch.no_grad():
        for parameter in module.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=size)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> WorldModelSFT:
    """A policy with adapters on other base weights than those of the model's folder."""
    folder, start = (tmp_path_factory.mktemp(name) for name in ("model", "start"))
    model, tokenizer = write_tiny_model(folder, make_world(), 340, hidden_size=64, num_attention_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    module = WorldModelSFT(model=str(folder), init_from=str(start), lora=LoRA(rank=3, alpha=6))
    module.configure_model()
    return module


@pytest.fixture(scope="module")
def generator(module: WorldModelSFT) -> Iterator[Watched]:
    pytest.importorskip("vllm")
    made = Watched(module.model, max_model_len=64, kv_cache_gib=0.1, max_num_seqs=8, enforce_eager=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def check() -> WeightCheck:
    return WeightCheck()


def sample(generator: VLLMGenerator) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    groups = generator.generate([PROMPT], Sampling(16), [[1, 2, 3, 4]])
    return [(completion.token_ids, completion.logprobs) for completion in groups[0]]


def test_the_engine_computes_with_the_trainers_adapters(
    generator: Watched, module: WorldModelSFT, check: WeightCheck
) -> None:
    seen = []
    for version in range(4):
        gap = check.update(generator, module, version, PROBE)
        assert gap is not None
        assert check.update(generator, module, version, PROBE) is None  # it has them
        assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)
        # The prompt was cached under the adapters before.
        for token_ids, logprobs in sample(generator):
            expected = module.score([*PROMPT, *token_ids])[len(PROMPT) - 1 :]
            assert logprobs == pytest.approx(expected, abs=1e-4)
        seen.append(generator.score([PROBE])[0])
        step(module, 0.1)
    assert generator.num_whole == 1  # the base, which is not that of the folder
    for before, after in pairwise(seen):
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.05
    assert generator._llm is not None
    assert list(generator._llm.llm_engine.list_loras()) == [5]  # the first are random
    assert generator._lora_request is not None
    folder = Path(generator._lora_request.lora_path)
    assert folder.parent == SHARED_MEMORY
    assert not folder.exists()


def test_samples_are_those_of_the_merged_model(
    generator: Watched, module: WorldModelSFT, check: WeightCheck
) -> None:
    check.update(generator, module, 10, PROBE)
    apart = sample(generator)
    num_whole = generator.num_whole
    generator.update_weights(module.generator_tensors(), 11)
    merged = sample(generator)
    assert [token_ids for token_ids, _ in apart] == [token_ids for token_ids, _ in merged]
    for (_, ours), (_, theirs) in zip(apart, merged, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    check.update(generator, module, 12, PROBE)  # the merged weights are no base for the adapters
    assert generator.num_whole == num_whole + 2
    assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)


def test_adapters_that_do_not_arrive_are_found_out(
    generator: Watched, module: WorldModelSFT, check: WeightCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    check.update(generator, module, 20, PROBE)
    step(module, 1e-6)
    assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)  # these do not show it
    with monkeypatch.context() as patch:
        patch.setattr(generator, "update_adapters", lambda tensors, version: None)
        with pytest.raises(WeightSyncError, match="the weight update at step 21 did not arrive: the digest"):
            check.update(generator, module, 21, PROBE)
    check.update(generator, module, 21, PROBE)


def test_a_layer_that_the_engine_lacks_is_not_ignored(generator: Watched, module: WorldModelSFT) -> None:
    tensors = {name: tensor.clone() for name, tensor in adapter_tensors(module.policy)}
    known, unknown = "layers.1.self_attn.o_proj", "layers.7.self_attn.o_proj"
    renamed = {name.replace(known, unknown): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    with pytest.raises(UnsupportedAdaptersError, match=rf"no layer model\.{unknown}"):
        generator.update_adapters(renamed.items(), 30)
    assert generator.weights_digest is None
