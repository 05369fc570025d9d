"""HFGenerator against Hugging Face's own generate and the plain forward pass, on tiny random models."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    MistralConfig,
    MistralForCausalLM,
)

from rwml_lightning.generation import Generator, HFGenerator
from rwml_lightning.generation.group_cache import GroupCache
from rwml_lightning.schema import Completion, Sampling
from support.hf_generators import (
    ARCHITECTURES,
    PROMPTS,
    SHAPE,
    TOLERANCE,
    attached,
    plain_logprobs,
    tiny_model,
)


@pytest.mark.heavy
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate(architecture: str, attention: str) -> None:
    model = tiny_model(architecture, attention)
    completions = attached(model).generate(PROMPTS, Sampling(20, temperature=0), [[0, 1]] * len(PROMPTS))
    for prompt, group in zip(PROMPTS, completions, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[
            0, len(prompt) :
        ]
        for completion in group:
            assert completion.token_ids == tuple(expected.tolist())
            assert completion.logprobs == pytest.approx(
                plain_logprobs(model, prompt, completion), abs=TOLERANCE
            )
            assert completion.finish_reason == "length"


def test_greedy_stops_at_the_end_token() -> None:
    model = tiny_model()
    free = attached(model).generate([PROMPTS[1]], Sampling(20, temperature=0), [[0]])[0][0]
    end = free.token_ids[6]
    stopped = attached(model, end_token_ids=(end,)).generate(
        [PROMPTS[1]], Sampling(20, temperature=0), [[0]]
    )[0][0]
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    assert stopped.finish_reason == "stop"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_plain_forward_pass(architecture: str, temperature: float) -> None:
    model = tiny_model(architecture)
    sampling = Sampling(24, temperature=temperature)
    # A third of the vocabulary ends a completion, so that members and whole groups finish at different steps.
    generator = attached(model, end_token_ids=tuple(range(32)))
    completions = generator.generate(PROMPTS, sampling, [list(range(6))] * len(PROMPTS))
    lengths = set()
    for prompt, group in zip(PROMPTS, completions, strict=True):
        for completion in group:
            expected = plain_logprobs(model, prompt, completion, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)
            assert (completion.finish_reason == "stop") == (completion.token_ids[-1] < 32)
            assert all(token >= 32 for token in completion.token_ids[:-1])
            lengths.add(len(completion.token_ids))
    assert len(lengths) > 2


def test_a_member_that_stops_ends_itself_alone() -> None:
    """Three steps, where an eighth of all tokens ends: some members stop, the others go on to the limit."""
    sampling = Sampling(3)
    generator = attached(tiny_model(), end_token_ids=tuple(range(12)))
    groups = generator.generate(PROMPTS, sampling, [list(range(16))] * len(PROMPTS))
    for group in groups:
        assert {completion.finish_reason for completion in group} == {"stop", "length"}
        for completion in group:
            ended = completion.token_ids[-1] < 12
            assert completion.finish_reason == ("stop" if ended else "length")
            assert ended or len(completion.token_ids) == sampling.max_tokens


@pytest.mark.parametrize("tokens_a_pass", [1, 20, 62])
def test_prompts_are_read_in_any_number_of_passes(
    tokens_a_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passes = tiny_model(), []
    seeds = [[0, 1]] * len(PROMPTS)
    at_once = attached(model).generate(PROMPTS, Sampling(8), seeds)
    monkeypatch.setattr("rwml_lightning.generation.group_decoding.PREFILL_TOKENS", tokens_a_pass)
    place = GroupCache.place
    monkeypatch.setattr(GroupCache, "place", lambda *a: (passes.append(a[1]), place(*a))[1])
    in_passes = attached(model).generate(PROMPTS, Sampling(8), seeds)
    assert len({(rows.start, rows.stop) for rows in passes if rows.stop is not None}) > 1
    for prompt, group, other in zip(PROMPTS, in_passes, at_once, strict=True):
        for completion, expected in zip(group, other, strict=True):
            assert completion.token_ids == expected.token_ids
            assert completion.logprobs == pytest.approx(
                plain_logprobs(model, prompt, completion), abs=TOLERANCE
            )


def test_nucleus_keeps_the_smallest_set_and_renormalises() -> None:
    model = tiny_model()
    prompt = PROMPTS[1]
    for completion in attached(model).generate([prompt], Sampling(12, top_p=0.6), [list(range(8))])[0]:
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            probabilities = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].softmax(-1)
        for row, token, logprob in zip(probabilities, completion.token_ids, completion.logprobs, strict=True):
            ordered, order = row.sort(descending=True)
            size = int((ordered.cumsum(0) < 0.6).sum()) + 1
            assert token in order[:size].tolist()
            assert logprob == pytest.approx(float((row[token] / ordered[:size].sum()).log()), abs=TOLERANCE)


def test_a_completion_depends_on_its_prompt_and_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    repacked = []
    keep = GroupCache.keep
    monkeypatch.setattr(GroupCache, "keep", lambda *a: (repacked.append(a[2].shape), keep(*a))[1])
    sampling = Sampling(40)
    seeds = [[10 * index + member for member in range(index + 2)] for index in range(len(PROMPTS))]
    generator = attached(model, end_token_ids=tuple(range(12)))
    together = generator.generate(PROMPTS, sampling, seeds)
    assert repacked, "no finished completion was forgotten: the test has lost its point"
    for index, prompt in enumerate(PROMPTS):
        for member, seed in enumerate(seeds[index]):
            alone = generator.generate([prompt], sampling, [[seed]])[0][0]
            assert alone.token_ids == together[index][member].token_ids
            assert alone.logprobs == pytest.approx(together[index][member].logprobs, abs=TOLERANCE)
    assert len({completion.token_ids for completion in together[3]}) > 1


def test_more_completions_than_decode_at_once() -> None:
    model = tiny_model()
    seeds = [[1, 2, 3], [4], [], [5, 6]]
    together = attached(model).generate(PROMPTS, Sampling(8), seeds)
    in_turn = attached(model, max_num_seqs=2).generate(PROMPTS, Sampling(8), seeds)
    assert [len(group) for group in together] == [3, 1, 0, 2]
    assert [[c.token_ids for c in group] for group in together] == [
        [c.token_ids for c in group] for group in in_turn
    ]


def test_lora_adapters_take_part() -> None:
    model = get_peft_model(
        tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.train()
    completion = attached(model).generate([PROMPTS[1]], Sampling(16), [[3]])[0][0]
    assert model.training
    model.eval()
    assert completion.logprobs == pytest.approx(plain_logprobs(model, PROMPTS[1], completion), abs=TOLERANCE)
    with model.disable_adapter():
        assert completion.logprobs != pytest.approx(plain_logprobs(model, PROMPTS[1], completion), abs=0.01)


def test_attached_module_is_left_as_it_was() -> None:
    model = tiny_model()
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    generator = attached(model)
    generator.update_weights(iter(()), version=7)
    assert generator.generate([PROMPTS[0]], Sampling(4), [[0]])[0][0].policy_version == 7
    assert [module.training for module in model.modules()] == before
    assert model.config._attn_implementation == "sdpa"
    model(input_ids=torch.tensor([PROMPTS[1]])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


@pytest.mark.parametrize("tied", [True, False])
def test_own_copy_follows_weight_updates(tmp_path, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    generator = HFGenerator(str(tmp_path), end_token_ids=())
    original = generator.generate([PROMPTS[1]], Sampling(12), [[0]])
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    assert ("lm_head.weight" in weights) is not tied
    generator.update_weights(((name, -tensor) for name, tensor in weights.items()), version=1)
    changed = generator.generate([PROMPTS[1]], Sampling(12), [[0]])
    assert changed[0][0].token_ids != original[0][0].token_ids
    assert changed[0][0].policy_version == 1
    generator.update_weights(weights.items(), version=2)
    again = generator.generate([PROMPTS[1]], Sampling(12), [[0]])
    assert again[0][0].token_ids == original[0][0].token_ids
    weights.pop("model.norm.weight")
    with pytest.raises(ValueError, match=r"1 tensors are missing, for example 'model\.norm\.weight'"):
        generator.update_weights(weights.items(), version=3)
    with pytest.raises(ValueError, match=r"no tensor 'model\.nomr\.weight'"):
        generator.update_weights([("model.nomr.weight", torch.ones(32))], version=3)


def test_score_is_the_plain_forward_pass() -> None:
    model = tiny_model()
    sequence = PROMPTS[3]
    expected = plain_logprobs(model, sequence[:1], Completion(tuple(sequence[1:]), (), "length", 0))
    assert attached(model).score([sequence, sequence[:5]])[0] == pytest.approx(expected, abs=TOLERANCE)


def test_refusals() -> None:
    generator = attached(tiny_model(), max_model_len=30)
    with pytest.raises(
        ValueError, match=r"prompt 1 has 17 tokens; with max_tokens=20 it exceeds the context of 30"
    ):
        generator.generate(PROMPTS[:2], Sampling(20), [[0], [0]])
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        generator.generate([[]], Sampling(20), [[0]])
    with pytest.raises(ValueError, match="2 prompts but seeds for 1"):
        generator.generate(PROMPTS[:2], Sampling(20), [[0]])
    with pytest.raises(ValueError, match="temperature"):
        generator.generate(PROMPTS[:1], Sampling(20, temperature=-1.0), [[0]])
    with pytest.raises(ValueError, match="no model"):
        HFGenerator().start()
    assert isinstance(generator, Generator)


def test_sliding_windows_are_refused_only_when_they_matter() -> None:
    config = MistralConfig(**{**SHAPE, "sliding_window": 24})
    generator = attached(MistralForCausalLM(config).eval())
    generator.generate([PROMPTS[1]], Sampling(4), [[0]])
    with pytest.raises(ValueError, match="35 tokens exceed the sliding_window of 24 of MistralForCausalLM"):
        generator.generate([PROMPTS[3]], Sampling(4), [[0]])
