"""What leaves the trainer: weights for the generator, checkpoints, exported folders."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from rwml_lightning.commands.export import export
from rwml_lightning.functional import Checkpointing
from rwml_lightning.generation import HFGenerator
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules import LoRA, WorldModelGRPO, WorldModelSFT
from rwml_lightning.modules.exporting import ExportError, export_policy
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import encode_answer
from rwml_lightning.schema import Label, LabelledBatch, Sampling
from rwml_lightning.weights import model_tensors
from support.training import fit, make
from support.worlds import make_world

IDS = torch.tensor([[5, 9, 40, 41, 7, 100]])
LORA = LoRA(rank=4, alpha=8)


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shaken_adapters(folder: Path, target_modules: str | list[str] = "all-linear") -> torch.nn.Module:
    """A policy whose adapters are not those they began as."""
    policy = load_policy(str(folder), "float32", LoRA(4, 8, target_modules=target_modules))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return policy


def test_fresh_adapters_change_nothing_and_alone_are_trained(tiny_model: Path) -> None:
    policy = load_policy(str(tiny_model), "float32", LORA)
    torch.testing.assert_close(logits_of(policy), logits_of(load_causal_lm(tiny_model)))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj", "v_proj"]])
def test_generator_gets_adapters_merged(tiny_model: Path, target_modules: str | list[str]) -> None:
    policy = shaken_adapters(tiny_model, target_modules)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    ours = dict(model_tensors(policy))
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())  # left as it was
    merged = dict(copy.deepcopy(policy).merge_and_unload().named_parameters())
    assert ours.keys() == merged.keys() == dict(load_causal_lm(tiny_model).named_parameters()).keys()
    for name, value in merged.items():
        torch.testing.assert_close(ours[name], value.detach())
    assert "lm_head.weight" not in ours  # tied: named once


def test_a_generator_with_these_weights_is_the_policy(tiny_model: Path) -> None:
    policy = shaken_adapters(tiny_model)
    generator = HFGenerator(str(tiny_model), device="cpu")
    generator.update_weights(model_tensors(policy), version=3)
    attached = HFGenerator()
    attached.attach(policy)
    answers = [g.generate([[5, 9, 40]], Sampling(8), [[1]])[0][0] for g in (generator, attached)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].logprobs == pytest.approx(answers[1].logprobs, abs=1e-4)


@pytest.mark.parametrize("adapters", [False, True])
def test_an_export_loads_in_transformers_and_answers_the_same(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, adapters: bool
) -> None:
    policy = shaken_adapters(tiny_model) if adapters else load_policy(str(tiny_model), "float32")
    expected = logits_of(policy)
    export_policy(policy, tiny_tokenizer, tmp_path / "out", IDS[0].tolist())
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= files
    assert not [name for name in files if name.startswith("adapter")]
    torch.testing.assert_close(
        logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("take mug") == tiny_tokenizer.encode(
        "take mug"
    )


def make_labels(tokenizer: PreTrainedTokenizerBase, count: int = 8) -> tuple[Label, ...]:
    prompts = [(t, tuple(tokenizer.encode(t.action))) for t in make_world()[:count]]
    chat = ChatFormat(tokenizer)
    return tuple(
        Label(t.transition_id, prompt, encode_answer(chat, prompt, t.next_state)) for t, prompt in prompts
    )


def sft_batches(tokenizer: PreTrainedTokenizerBase, num_steps: int) -> list[LabelledBatch]:
    return [LabelledBatch(step, make_labels(tokenizer)) for step in range(num_steps)]


@pytest.mark.parametrize("normalisation", ["token", "sequence"])
def test_sft_loss_is_the_cross_entropy_of_the_answers(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, normalisation: str
) -> None:
    model = load_causal_lm(tiny_model)
    losses = []
    for label in make_labels(tiny_tokenizer):
        ids = torch.tensor([*label.prompt_ids, *label.answer_ids])
        logits = model(input_ids=ids[None]).logits[0, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[len(label.prompt_ids) - 1 :]
        )
    expected = (
        torch.cat(losses).mean()
        if normalisation == "token"
        else torch.stack([loss.mean() for loss in losses]).mean()
    )
    expected.backward()
    for max_tokens in (4096, 30):
        module = make(
            WorldModelSFT,
            model=str(tiny_model),
            loss_normalisation=normalisation,
            max_tokens_per_micro_batch=max_tokens,
            max_grad_norm=1e9,
        )
        steps = fit(module, sft_batches(tiny_tokenizer, 1))
        assert steps.metrics[0]["train/loss"] == pytest.approx(expected.item(), abs=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(steps.gradients[0][name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_sft_lowers_the_loss(tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    module = make(WorldModelSFT, model=str(tiny_model), learning_rate=3e-3)
    news = encode_answer(
        ChatFormat(tiny_tokenizer), (), "The pen is in the safe."
    )  # not what the tiny model was taught
    labels = tuple(replace(label, answer_ids=news) for label in make_labels(tiny_tokenizer))
    steps = fit(module, [LabelledBatch(step, labels) for step in range(10)])
    losses = [metrics["train/loss"] for metrics in steps.metrics]
    assert losses[-1] < 0.7 * losses[0]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.heavy
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("gradient_checkpointing", ["none", "selective", "full"])
def test_a_checkpoint_gives_the_policy_back(
    tiny_model: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    lora: LoRA | None,
    gradient_checkpointing: Checkpointing,
) -> None:
    module = make(
        WorldModelSFT,
        model=str(tiny_model),
        lora=lora,
        learning_rate=1e-2,
        gradient_checkpointing=gradient_checkpointing,
    )
    fit(module, sft_batches(tiny_tokenizer, 2))
    path = tmp_path / "a.ckpt"
    module.trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)  # nothing in it can run code
    assert saved["policy"]["stage"] == "wm_sft"
    expected = logits_of(module.policy)
    assert not torch.allclose(expected, logits_of(load_causal_lm(tiny_model)), atol=1e-3)
    again = load_policy(str(tiny_model), "float32", lora, init_from=str(path))
    torch.testing.assert_close(logits_of(again), expected)
    export(str(path), str(tmp_path / "out"))
    torch.testing.assert_close(logits_of(load_causal_lm(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_another_setting_or_stage_is_refused(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    module = WorldModelSFT(model=str(tiny_model), lora=LORA)
    fit(module, sft_batches(tiny_tokenizer, 1))
    path = tmp_path / "a.ckpt"
    module.trainer.save_checkpoint(path)
    with pytest.raises(
        ValueError,
        match=r"a\.ckpt holds the weights of another model or LoRA setting: model\.lora\.rank was 4 and is None",
    ):
        load_policy(str(tiny_model), "float32", init_from=str(path))
    other = WorldModelGRPO(model=str(tiny_model), lora=LORA)
    saved = torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match=r"of stage wm_sft, not wm_grpo: .* set model\.init_from to it"):
        other.on_load_checkpoint(saved)
    with pytest.raises(ValueError, match=r"of stage unknown, not wm_grpo"):
        other.on_load_checkpoint({"state_dict": {}})
    with pytest.raises(ValueError, match=r"model\.init_from names /no/where, which does not exist"):
        load_policy(str(tiny_model), "float32", init_from="/no/where")


def test_random_generators_go_on_where_a_checkpoint_was_saved(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A GPU's generator too; what a GPU saved is resumed on a CPU, and the other way round."""
    module = WorldModelSFT(model=str(tiny_model), lora=LORA)
    loops = {
        "epoch_progress": {"total": {}, "current": {}},
        "epoch_loop.batch_progress": {},
    }

    def save(gpu: torch.Tensor | None) -> dict[str, Any]:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: gpu)
        checkpoint: dict[str, Any] = {"loops": {"fit_loop": loops}}
        module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, tmp_path / "a.ckpt")
        return torch.load(tmp_path / "a.ckpt", weights_only=True)

    def load(checkpoint: dict[str, Any], has_gpu: bool) -> list[torch.Tensor]:
        restored: list[torch.Tensor] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
        monkeypatch.setattr(torch.cuda, "set_rng_state", restored.append)
        torch.manual_seed(1)
        module.on_load_checkpoint(checkpoint)
        assert torch.equal(torch.rand(4), drawn)
        return restored

    torch.manual_seed(0)
    state = torch.arange(16, dtype=torch.uint8)
    with_gpu, without = save(state), save(None)
    drawn = torch.rand(4)
    assert [value.tolist() for value in load(with_gpu, has_gpu=True)] == [state.tolist()]
    assert load(with_gpu, has_gpu=False) == []
    assert load(without, has_gpu=True) == []
    with pytest.raises(ValueError, match=r"^the checkpoint holds .*: model\.lora\.alpha was 8 and is 16"):
        WorldModelSFT(model=str(tiny_model), lora=replace(LORA, alpha=16)).on_load_checkpoint(with_gpu)


def test_dropout_of_the_model_is_off(tiny_model: Path) -> None:
    policy = load_policy(str(tiny_model), "float32")
    assert policy.training
    assert all(module.p == 0 for module in policy.modules() if isinstance(module, torch.nn.Dropout))
    with torch.no_grad():
        torch.testing.assert_close(policy(input_ids=IDS).logits, logits_of(policy))


def test_an_export_that_is_not_the_policy_is_refused(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy: Any = load_policy(str(tiny_model))
    probe = IDS[0].tolist()
    policy.config.rms_norm_eps = 1.0  # the tensors arrive, and compute something else
    with pytest.raises(
        ExportError, match=r"the model in .*/config is not the policy: .* differ by [\d.]+ nats"
    ):
        export_policy(policy, tiny_tokenizer, tmp_path / "config", probe)
    policy.config.rms_norm_eps = 1e-6
    policy.model.register_buffer("extra", torch.ones(1))  # no loader knows it
    with pytest.raises(ExportError, match=r"/tensors does not hold the policy's tensors"):
        export_policy(policy, tiny_tokenizer, tmp_path / "tensors", probe)


def test_an_export_with_nan_is_refused(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    policy: Any = load_policy(str(tiny_model))
    with torch.no_grad():
        policy.model.norm.weight[0] = float("nan")
    with pytest.raises(ExportError, match=r"differ by nan nats"):
        export_policy(policy, tiny_tokenizer, tmp_path / "out", IDS[0].tolist())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_weights_are_trained_by_adapters_or_with_stochastic_rounding(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, dtype: Any
) -> None:
    whole = WorldModelSFT(model=str(tiny_model), dtype=dtype)
    with pytest.raises(ValueError, match=rf"model\.dtype is {dtype}.* set .*stochastic_rounding to true"):
        fit(whole, sft_batches(tiny_tokenizer, 1))
    if dtype == "bfloat16":
        module = make(WorldModelSFT, model=str(tiny_model), dtype=dtype, lora=LORA, learning_rate=1e-6)
        module.configure_model()
        before = {name: p.clone() for name, p in module.policy.named_parameters() if "lora_B" in name}
        fit(module, sft_batches(tiny_tokenizer, 2))
        changed = [
            (p != before[name]).float().mean()
            for name, p in module.policy.named_parameters()
            if name in before
        ]
        assert min(changed) > 0.99  # steps of 1e-6 count


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "16-true"])
def test_precisions_that_train_otherwise_are_refused(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, precision: str
) -> None:
    module = WorldModelSFT(model=str(tiny_model))
    plugins = (
        [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]
        if precision == "16-mixed"
        else [HalfPrecision(precision)]  # type: ignore[arg-type]
    )
    with pytest.raises(
        ValueError, match=rf"trainer\.precision is {precision}, .* set bf16-mixed, or 32-true"
    ):
        fit(module, sft_batches(tiny_tokenizer, 1), plugins=plugins)


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("16-mixed", "which multiplies gradients by a loss scale, so that norm, finiteness check and clipping would be wrong"),
        ("16-true", "which rounds trained weights too coarsely for small steps"),
        ("bf16-true", "which rounds trained weights too coarsely for small steps"),
        ("64-true", "in which Lightning converts the tensors of a batch in place, and batches here are frozen"),
    ],
)  # fmt: skip
def test_an_error_says_why_a_precision_is_refused(precision: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"set bf16-mixed, or 32-true$") as caught:
        WorldModelSFT(model="m").check_precision(precision)
    assert str(caught.value) == f"trainer.precision is {precision}, {why}; set bf16-mixed, or 32-true"
    for accepted in ("32-true", "bf16-mixed"):
        WorldModelSFT(model="m").check_precision(accepted)


def test_mixed_bfloat16_trains(tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    module = make(WorldModelSFT, model=str(tiny_model), learning_rate=1e-3)
    steps = fit(module, sft_batches(tiny_tokenizer, 3), precision="bf16-mixed")
    assert all(gradient.dtype == torch.float32 for gradient in steps.gradients[0].values())
    losses = [metrics["train/loss"] for metrics in steps.metrics]
    assert losses[-1] < losses[0]
