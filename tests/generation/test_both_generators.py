"""One set of promises, held by both generators on the packaged model; vLLM's is the real engine."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import Generator, HFGenerator, VLLMGenerator, WeightCheck
from rwml_lightning.models import load_causal_lm, load_tokenizer
from rwml_lightning.modules import WorldModelSFT
from rwml_lightning.schema import Completion, Sampling
from rwml_lightning.weights import model_tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "package:smollm2-135m-instruct"
# Both compute in float32 with different kernels; the largest differences seen are stated where they are checked.
TOLERANCE = 2e-3
QUESTIONS = [
    "What is the capital of France?",
    "You open the fridge. The fridge is open. In it, you see an apple 1, an egg 2, and a lettuce 1. "
    "You take the apple 1 from the fridge. You close the fridge. What do you see now, and what do you hold? "
    * 5,
    "Say hi.",
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_causal_lm(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False
        )
        for q in QUESTIONS
    ]


@pytest.fixture(scope="module", params=["hf", "vllm"])
def generator(request: pytest.FixtureRequest) -> Iterator[Generator]:
    if request.param == "vllm":
        pytest.importorskip("vllm")
        made: Generator = VLLMGenerator(
            MODEL, max_model_len=512, kv_cache_gib=0.5, max_num_seqs=16, enforce_eager=True
        )
    else:
        made = HFGenerator(MODEL, share_weights=False)
    made.start()
    yield made
    made.close()


def plain_logprobs(
    model: PreTrainedModel, prompt: list[int], completion: Completion, temperature: float
) -> list[float]:
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()


def test_greedy_equals_generate(
    generator: Generator, model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    completions = generator.generate(prompts, Sampling(16, temperature=0), [[0]] * len(prompts))
    for prompt, (completion,) in zip(prompts, completions, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)[
            0, len(prompt) :
        ]
        assert completion.token_ids == tuple(expected.tolist())


def test_seeds_decide(generator: Generator, prompts: list[list[int]]) -> None:
    sampling = Sampling(16)
    first = generator.generate(prompts, sampling, [[1, 2, 3], [1], [4, 5]])
    assert [len(group) for group in first] == [3, 1, 2]
    assert len({completion.token_ids for completion in first[0]}) == 3
    again = generator.generate(prompts[:1], sampling, [[3, 1]])[0]
    assert [completion.token_ids for completion in again] == [first[0][2].token_ids, first[0][0].token_ids]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_models(
    generator: Generator, model: PreTrainedModel, prompts: list[list[int]], temperature: float
) -> None:
    completions = generator.generate(prompts, Sampling(24, temperature=temperature), [[7, 8]] * len(prompts))
    for prompt, group in zip(prompts, completions, strict=True):
        for completion in group:
            expected = plain_logprobs(model, prompt, completion, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)


def test_nucleus_logprobs_are_renormalised(
    generator: Generator, model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    completion = generator.generate(prompts[:1], Sampling(16, top_p=0.5), [[11]])[0][0]
    ids = torch.tensor([[*prompts[0], *completion.token_ids]])
    with torch.no_grad():
        probabilities = model(input_ids=ids).logits[0, len(prompts[0]) - 1 : -1].softmax(-1)
    for row, token, logprob in zip(probabilities, completion.token_ids, completion.logprobs, strict=True):
        ordered = row.sort(descending=True).values
        nucleus = ordered[: int((ordered.cumsum(0) < 0.5).sum()) + 1]
        assert logprob == pytest.approx(float((row[token] / nucleus.sum()).log()), abs=TOLERANCE)


def test_finish_reasons(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> None:
    short, complete = generator.generate([prompts[1], prompts[2]], Sampling(40, temperature=0), [[0], [0]])
    assert short[0].finish_reason == "length"
    assert len(short[0].token_ids) == 40
    assert complete[0].finish_reason == "stop"
    assert complete[0].token_ids[-1] == tokenizer.eos_token_id
    assert len(complete[0].logprobs) == len(complete[0].token_ids) < 40


def test_score_is_the_trainers(
    generator: Generator, model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    rest = Completion(tuple(prompts[0][1:]), (), "length", 0)
    expected = plain_logprobs(model, prompts[0][:1], rest, temperature=1.0)
    assert generator.score([prompts[0]])[0] == pytest.approx(expected, abs=TOLERANCE)


def test_weight_updates_show_and_leave_no_stale_prefix(
    generator: Generator, model: PreTrainedModel, prompts: list[list[int]]
) -> None:
    original = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert "lm_head.weight" not in original  # tied embeddings: named once
    sampling = Sampling(16)
    before = generator.generate(prompts, sampling, [[1], [2], [3]])
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "layers.3." in name or "embed" in name:
                    parameter.mul_(0.9)
        generator.update_weights(model_tensors(model), version=5)
        assert generator.weights_digest == digest_of(model)
        changed = generator.generate(prompts, sampling, [[1], [2], [3]])
        assert [g[0].token_ids for g in changed] != [g[0].token_ids for g in before]
        assert {g[0].policy_version for g in changed} == {5}
        # Exact log-probabilities on a prompt that was cached under the old weights.
        for prompt, (completion,) in zip(prompts, changed, strict=True):
            expected = plain_logprobs(model, prompt, completion, temperature=1.0)
            assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(original[name])
        generator.update_weights(model_tensors(model), version=6)
    after = generator.generate(prompts, sampling, [[1], [2], [3]])
    assert [g[0].token_ids for g in after] == [g[0].token_ids for g in before]


def test_weights_that_barely_move_are_proved_to_arrive(generator: Generator) -> None:
    assert generator.weights_dtype == "float32"
    module, check, probe = WorldModelSFT(model=MODEL), WeightCheck(), list(range(100, 132))
    module.configure_model()
    assert check.update(generator, module, 1, probe) is not None
    for version in (2, 3):
        with torch.no_grad():
            for parameter in module.policy.parameters():
                parameter.add_(torch.sign(torch.randn_like(parameter)), alpha=1e-6)
        gap = check.update(generator, module, version, probe)
        assert gap is not None
        assert gap < TOLERANCE
        assert generator.weights_digest == digest_of(module.policy)
        assert check.update(generator, module, version, probe) is None
    generator.update_weights(model_tensors(load_causal_lm(MODEL)), 4)


def digest_of(model: torch.nn.Module) -> str:
    return combine_digests(tensor_digest(name, tensor) for name, tensor in model_tensors(model))


def test_refusals_name_the_prompt(generator: Generator, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="prompt 1 has 9000 tokens; with max_tokens=4"):
        generator.generate([prompts[0], [5] * 9000], Sampling(4), [[0], [0]])


def test_close_leaves_no_engine(generator: Generator) -> None:
    generator.close()
    left = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert not [command for command in left if "vllm" in command.lower()]
    generator.close()
