"""Settings of HFGenerator off their defaults: what is loaded and where, which context counts, what ends, who waits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import HFGenerator, group_decoding
from rwml_lightning.generation import hf as hf_module
from rwml_lightning.schema import Completion, Sampling
from support.hf_generators import PROMPTS, TOLERANCE, attached, plain_logprobs, tiny_model


class Loads:
    """Stands for loading a model: notes which, and where it goes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
        self.calls: list[Any] = []
        monkeypatch.setattr(hf_module, "load_causal_lm", self.load)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    def load(self, name: str, dtype: str) -> Any:
        self.calls.append((name, dtype))
        return SimpleNamespace(eval=lambda: SimpleNamespace(to=self.calls.append))


@pytest.mark.parametrize(
    ("device", "gpu", "place"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda:1", False, "cuda:1")],
)
def test_a_copy_goes_where_it_is_told(
    device: str, gpu: bool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch, gpu)
    generator = HFGenerator("name", "bfloat16", device)
    generator.start()
    generator.start()
    assert loads.calls == [("name", "bfloat16"), place]  # once
    generator.close()
    generator.start()
    assert len(loads.calls) == 4


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, generator = Loads(monkeypatch, gpu=False), HFGenerator("name")
    assert (generator.max_num_seqs, generator.max_model_len) == (128, None)
    assert (generator.policy_version, generator.weights_digest) == (0, None)
    generator.start()
    assert loads.calls == [("name", "float32"), "cpu"]
    with pytest.raises(ValueError, match=r"HFGenerator has no model: set model, or attach"):
        HFGenerator().start()


@pytest.mark.parametrize(
    ("own", "given", "longest"), [(128, None, 128), (128, 40, 40), (32, 40, 32), (None, 40, 40), (None, None, None)]
)  # fmt: skip
def test_the_shorter_context_counts(own: int | None, given: int | None, longest: int | None) -> None:
    text = SimpleNamespace() if own is None else SimpleNamespace(max_position_embeddings=own)
    module: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    generator = HFGenerator(max_model_len=given)
    if longest is None:
        with pytest.raises(
            ValueError, match="SimpleNamespace has no max_position_embeddings: set max_model_len"
        ):
            generator._context(module)
    else:
        assert generator._context(module) == longest


@pytest.mark.parametrize("named", [None, 7, [7, 9]])
@pytest.mark.parametrize("has_generation_config", [True, False])
def test_an_attached_module_names_its_end_tokens(named: Any, has_generation_config: bool) -> None:
    model = tiny_model(eos_token_id=3 if has_generation_config else named)
    if has_generation_config:
        model.generation_config.eos_token_id = named
    else:
        model.generation_config = None
    generator = HFGenerator()
    generator.attach(model)
    greedy = Sampling(20, temperature=0)
    ends = {None: [], 7: [7]}.get(named, [7, 9]) if not isinstance(named, list) else named
    assert list(generator._end_tokens(model)) == ends
    free = attached(model).generate([PROMPTS[1]], greedy, [[0]])[0][0].token_ids
    cut = next((place + 1 for place, token in enumerate(free) if token in ends), 20)
    assert generator.generate([PROMPTS[1]], greedy, [[0]])[0][0].token_ids == free[:cut]


def test_the_named_model_s_own_end_tokens_and_given_ones(tiny_model: Path) -> None:
    generator = HFGenerator(str(tiny_model), device="cpu")
    module: Any = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[1, 2]))
    (end,) = generator._end_tokens(module)
    assert end == hf_module.load_causal_lm(tiny_model).config.eos_token_id
    assert HFGenerator(str(tiny_model), end_token_ids=(5,))._end_tokens(module) == (5,)


class Decodes:
    """Stands for decoding: notes each pass, and answers with the prompts' lengths and seeds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[Any, ...]] = []
        monkeypatch.setattr(group_decoding, "decode_groups", self)

    def __call__(
        self, model: Any, prompts: Any, seeds: Any, sampling: Any, end_tokens: Any, policy_version: int
    ) -> list[list[Completion]]:
        assert not model.training
        self.passes.append(([len(prompt) for prompt in prompts], seeds, sampling, end_tokens, policy_version))
        return [
            [Completion((len(prompt), seed), (), "stop", 0) for seed in group]
            for prompt, group in zip(prompts, seeds, strict=True)
        ]


@pytest.mark.parametrize(
    ("most", "passes"),
    [(128, [[1, 5, 17, 31]]), (6, [[1, 5, 17], [31]]), (5, [[1, 5], [17, 31]]), (1, [[1], [5], [17], [31]])],
)
def test_the_shortest_prompts_go_together(
    most: int, passes: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of 2, 1, 3 and 4 members, for prompts of 1, 17, 5 and 31 tokens."""
    decodes, sampling = Decodes(monkeypatch), Sampling(8, temperature=0.5)
    generator = attached(tiny_model(), end_token_ids=(4,), max_num_seqs=most)
    generator.update_weights((), version=9)
    seeds = [[1, 2], [3], [4, 5, 6], [7, 8, 9, 10]]
    found = generator.generate(PROMPTS, sampling, seeds)
    assert [lengths for lengths, *_ in decodes.passes] == passes
    assert {one[2:] for one in decodes.passes} == {(sampling, (4,), 9)}
    assert [[c.token_ids for c in group] for group in found] == [
        [(len(prompt), seed) for seed in group] for prompt, group in zip(PROMPTS, seeds, strict=True)
    ]


def test_prompts_without_members_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    decodes = Decodes(monkeypatch)
    generator = attached(tiny_model())
    assert generator.generate(PROMPTS[:2], Sampling(8), [[], []]) == [[], []]
    assert generator.generate(PROMPTS[:3], Sampling(8), [[], [3], []])[0::2] == [[], []]
    assert [lengths for lengths, *_ in decodes.passes] == [[17]]


def test_the_longest_request_decides_what_can_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(group_decoding, "check_decodable", lambda module, context: asked.append(context))
    attached(tiny_model()).generate(PROMPTS, Sampling(2), [[0], [0], [0], []])
    assert asked == [17 + 2]


def test_scores_are_in_float32_and_of_each_sequence() -> None:
    model = tiny_model().to(torch.bfloat16)
    model.train()
    scores = attached(model).score([PROMPTS[3], PROMPTS[1]])
    assert model.training
    model.eval()
    for sequence, score in zip((PROMPTS[3], PROMPTS[1]), scores, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sequence])).logits[0, :-1].float()
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(sequence[1:])[:, None])[:, 0]
        assert score == pytest.approx(expected.tolist(), abs=1e-6)


def test_decoding_leaves_mode_and_attention_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    model.train()
    monkeypatch.setattr(group_decoding, "decode_groups", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attached(model).generate(PROMPTS[:1], Sampling(2), [[0]])
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert torch.is_grad_enabled()


def test_what_a_copy_took_is_told_bit_by_bit(tiny_model: Path) -> None:
    """Tensors of another dtype are compared as they came; of an update that fails nothing is told."""
    generator = HFGenerator(str(tiny_model), "bfloat16", device="cpu")
    named = {name: tensor.float() * 2 for name, tensor in generator._started().state_dict().items()}
    named.pop("lm_head.weight")  # tied
    generator.update_weights(named.items(), version=4)
    assert generator.weights_digest == combine_digests(tensor_digest(*one) for one in named.items())
    with pytest.raises(ValueError, match="weight update: the model has no tensor 'x'"):
        generator.update_weights([("x", torch.ones(1))], version=5)
    assert (generator.policy_version, generator.weights_digest) == (4, None)


def test_attaching_forgets_what_a_copy_was_told(tiny_model: Path) -> None:
    generator = HFGenerator(str(tiny_model), device="cpu")
    generator.update_weights(generator._started().state_dict().items(), version=1)
    assert generator.weights_digest is not None
    generator.detach()  # nothing is attached, so the copy stays
    assert generator.weights_digest is not None
    module = hf_module.load_causal_lm(tiny_model)
    assert generator.attach(module)
    assert generator.weights_digest is None
    assert generator._module is module
    generator.detach()
    assert generator._module is None


def test_a_generator_can_keep_its_own_weights(tiny_model: Path) -> None:
    generator = HFGenerator(str(tiny_model), device="cpu", share_weights=False)
    generator.start()
    own = generator._module
    assert not generator.attach(hf_module.load_causal_lm(tiny_model))
    assert generator._module is own


def test_many_steps_outgrow_the_first_cache() -> None:
    """More than the 64 columns a member that are taken at first."""
    model = tiny_model()
    completions = attached(model).generate([PROMPTS[2]], Sampling(100), [[0, 1, 2]])[0]
    for completion in completions:
        assert completion.finish_reason == "length"
        assert completion.logprobs == pytest.approx(
            plain_logprobs(model, PROMPTS[2], completion), abs=TOLERANCE
        )
