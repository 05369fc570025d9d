"""What is read from folders and checkpoints, what is refused, and what is set up on the way."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerBase

from rwml_lightning.modules import LoRA, PolicyGRPO, PolicySFT, WorldModelGRPO, WorldModelSFT, exporting
from rwml_lightning.modules.base import NonFiniteError
from rwml_lightning.modules.exporting import ExportError, export_policy
from rwml_lightning.modules.grpo import GRPO
from rwml_lightning.modules.loading import (
    _without_dropout,
    check_weights,
    checkpoint_policy,
    checkpoint_skeleton,
    load_checkpoint_weights,
    load_policy,
)
from rwml_lightning.modules.optimizer import Optimizer
from rwml_lightning.weights import model_tensors
from support.plain_grpo import Text, plain_logprobs
from support.training import make

STAGES = [WorldModelGRPO, WorldModelSFT, PolicyGRPO, PolicySFT]


def saved(module: Any, path: Path) -> Path:
    """The checkpoint that a module would be in, before any training."""
    module.configure_model()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("kind", STAGES)
def test_defaults_are_the_same_until_someone_means_to_change_them(kind: type[Any]) -> None:
    """A default that moves changes every run whose config leaves it out."""
    shared = {
        "init_from": None,
        "lora": None,
        "dtype_name": "float32",
        "gradient_checkpointing": "none",
        "optimizer": Optimizer(
            learning_rate=1e-6, schedule="constant", warmup_steps=0, weight_decay=0.0, max_grad_norm=1.0
        ),
        "max_tokens_per_micro_batch": 4096,
        "head_chunk_size": 1024,
    }
    grpo = {
        "grpo": GRPO(
            clip_low=0.2,
            clip_high=0.2,
            num_iterations=1,
            advantage_normalisation="mean_std",
            loss_normalisation="sequence",
            loss_constant=None,
            kl_coefficient=0.0,
            kl_estimator="k3",
            importance_cap=2.0,
            max_staleness=0,
        )
    }
    play = {
        "credit": "episode",
        "discount": 0.95,
        "step_advantage_weight": 1.0,
        "world_model_weight": 0.0,
    }
    own = {
        WorldModelGRPO: grpo,
        PolicyGRPO: grpo | play,
        WorldModelSFT: {"loss_normalisation": "token"},
        PolicySFT: {"loss_normalisation": "token"},
    }[kind]
    module = kind(model="m")
    assert {name: getattr(module, name) for name in shared | own} == shared | own
    named = set(inspect.signature(kind).parameters) - {"model"}
    assert {name.removesuffix("_name") for name in shared | own} == named
    assert module.steps_per_batch == 1
    assert not module.automatic_optimization
    assert module.on_policy == (kind in (WorldModelGRPO, PolicyGRPO))
    assert asdict(LoRA()) == {"rank": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        ({"discount": 1}, True),
        ({"discount": 0.01}, True),
        ({"discount": 1.01}, False),
        ({"world_model_weight": 0.01}, True),
        ({"max_grad_norm": 0.01}, True),
        ({"num_iterations": 1}, True),
    ],
)
def test_bounds_of_settings(arguments: dict[str, Any], accepted: bool) -> None:
    if accepted:
        ((name, value),) = arguments.items()
        module = make(PolicyGRPO, model="m", **arguments)
        assert value in [getattr(part, name, None) for part in (module, module.optimizer, module.grpo)]
    else:
        with pytest.raises(ValueError, match=r"model\.discount is 1\.01; it must be above 0 and at most 1"):
            make(PolicyGRPO, model="m", **arguments)


SCALED = (
    "which multiplies gradients by a loss scale, so that norm, finiteness check and clipping would be wrong"
)
COARSE = "which rounds trained weights too coarsely for small steps"


@pytest.mark.parametrize(
    ("precision", "why"),
    [("16-mixed", SCALED), ("bf16-true", COARSE), ("16-true", COARSE)],
)
def test_a_precision_is_refused_with_its_reason(precision: str, why: str) -> None:
    said = f"^trainer.precision is {precision}, {why}; set bf16-mixed, or 32-true$"
    with pytest.raises(ValueError, match=said):
        WorldModelSFT(model="m").check_precision(precision)


def test_the_tokenizer_is_the_models(tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    module = WorldModelSFT(model=str(tiny_model))
    assert module.tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    assert module.tokenizer is module.tokenizer


def test_a_policy_is_loaded_once(tiny_model: Path) -> None:
    for module in (WorldModelSFT(model=str(tiny_model)), WorldModelGRPO(model=str(tiny_model))):
        module.configure_model()
        policy = module.policy
        module.configure_model()
        assert module.policy is policy


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("lora", [None, LoRA(3, 7, 0.1, ["q_proj"]), LoRA(2)])
def test_a_checkpoint_says_what_its_policy_is(
    tiny_model: Path, tmp_path: Path, kind: type[Any], lora: LoRA | None
) -> None:
    module = kind(model=str(tiny_model), lora=lora, dtype="bfloat16")
    path = saved(module, tmp_path / "a.ckpt")
    assert checkpoint_policy(path) == {"model": str(tiny_model), "dtype": "bfloat16", "lora": lora}
    assert torch.load(path, weights_only=True)["policy"]["stage"] == kind.stage


@dataclass
class Code:
    """Makes a folder when it is unpickled."""

    folder: Path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"policy": {"model": "m", "dtype": "float32"}},
        {"policy": {"model": "m", "lora": None}},
        {"policy": {"dtype": "float32", "lora": None}},
        {"policy": {"model": "m", "dtype": "float32", "lora": {"rank": 1, "colour": 2}}},
        b"",
        b"no checkpoint",
    ],
)
def test_what_is_no_checkpoint_of_ours(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"a\.ckpt is not a complete checkpoint of rwml-lightning"):
        checkpoint_policy(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    class Touch:
        def __reduce__(self) -> Any:
            return mark.touch, ()

    policy = {"model": "m", "dtype": "float32", "lora": None}
    torch.save({"policy": policy, "more": Touch()}, tmp_path / "a.ckpt")
    mark.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"a\.ckpt is not a complete checkpoint of rwml-lightning"):
        checkpoint_policy(tmp_path / "a.ckpt")
    assert not mark.exists()


def test_part_of_a_checkpoint_is_none(tiny_model: Path, tmp_path: Path) -> None:
    path = saved(WorldModelSFT(model=str(tiny_model)), tmp_path / "a.ckpt")
    content = path.read_bytes()
    for tenths in range(10):
        path.write_bytes(content[: len(content) * tenths // 10])
        with pytest.raises(ValueError, match="not a complete checkpoint"):
            checkpoint_policy(path)


def test_weights_of_a_checkpoint_are_the_policys_alone(tiny_model: Path, tmp_path: Path) -> None:
    source: Any = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.1)
    state = {f"policy.{name}": tensor for name, tensor in source.state_dict().items()}

    def load(changes: dict[str, Any], without: str = "") -> Any:
        changed = {name: tensor for name, tensor in {**state, **changes}.items() if name != without}
        torch.save({"state_dict": changed}, tmp_path / "a.ckpt")
        policy = LlamaForCausalLM.from_pretrained(tiny_model)
        load_checkpoint_weights(policy, tmp_path / "a.ckpt")
        return policy

    for policy in (load({"reference.norm": torch.ones(1)}), load({}, without="policy.lm_head.weight")):
        for name, tensor in source.state_dict().items():
            assert torch.equal(policy.state_dict()[name], tensor), name
    with pytest.raises(
        ValueError, match=r"a\.ckpt holds the weights of another .*: model\.norm\.weight does"
    ):
        load({}, without="policy.model.norm.weight")
    with pytest.raises(ValueError, match=r"another model or LoRA setting: model\.extra does not match"):
        load({"policy.model.extra": torch.ones(1)})


def test_code_in_a_checkpoint_does_not_run(model: LlamaForCausalLM, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "a.ckpt"
    torch.save({"policy": Code(made), "state_dict": {"policy.norm": Code(made)}}, path)
    readers: list[Callable[[], Any]] = [
        lambda: checkpoint_policy(path),
        lambda: checkpoint_skeleton(path),
        lambda: load_checkpoint_weights(model, path),
        lambda: load_policy("unused", init_from=str(path)),
    ]
    for read in readers:
        with pytest.raises(
            Exception, match=r"not a complete checkpoint of rwml-lightning|Weights only load failed"
        ):
            read()
        assert not made.exists()


@pytest.mark.parametrize("lora", [None, LoRA(3, 7, target_modules=["q_proj", "down_proj"])])
def test_a_skeleton_is_the_policy_of_the_checkpoint(
    tiny_model: Path, tmp_path: Path, lora: LoRA | None
) -> None:
    """Its adapters and their scale included; what is not in the file would have no values."""
    module = WorldModelSFT(model=str(tiny_model), lora=lora)
    module.configure_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    skeleton = checkpoint_skeleton(saved(module, tmp_path / "a.ckpt"))
    own = module.policy.state_dict()
    assert skeleton.state_dict().keys() == own.keys()
    for name, tensor in skeleton.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    merged = dict(model_tensors(skeleton))  # has the head too, which is no longer tied
    for name, tensor in module.generator_tensors():
        assert torch.equal(merged[name], tensor), name


def test_a_checkpoint_or_a_folder_replaces_the_models_weights(tiny_model: Path, tmp_path: Path) -> None:
    module = WorldModelSFT(model=str(tiny_model))
    module.configure_model()
    policy: Any = module.policy
    with torch.no_grad():
        policy.model.norm.weight.mul_(1.5)
    policy.save_pretrained(tmp_path / "folder")
    for source in (saved(module, tmp_path / "a.ckpt"), tmp_path / "folder"):
        other = WorldModelSFT(model=str(tiny_model), init_from=str(source))
        other.configure_model()
        assert torch.equal(other.policy.get_parameter("model.norm.weight"), policy.model.norm.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_wherever_they_come_from(
    tiny_model: Path, tmp_path: Path, value: float
) -> None:
    module = WorldModelSFT(model=str(tiny_model), lora=LoRA(rank=2))
    module.configure_model()
    base: Any = module.policy.get_base_model()  # type: ignore[operator]
    check_weights(base, "x")
    layer = base.model.layers[1].mlp.up_proj
    with torch.no_grad():
        layer.lora_A["default"].weight[0, 0] = value
        path = saved(module, tmp_path / "a.ckpt")
        with pytest.raises(
            ValueError, match=r"a\.ckpt: 1 weights hold NaN or infinity, for example model\.la"
        ):
            load_policy(str(tiny_model), lora=LoRA(rank=2), init_from=str(path))
        layer.base_layer.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"^x: 2 weights .* example model\.layers\.1\.mlp\.up_proj\.weight$"):
        check_weights(module.policy, "x")
    broken: Any = LlamaForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        broken.model.norm.weight[0] = value
    broken.save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"/out: 1 weights hold NaN or infinity, for example model\.norm"):
        load_policy(str(tiny_model), init_from=str(tmp_path / "out"))


def test_a_buffer_may_hold_infinity(model: LlamaForCausalLM) -> None:
    model.register_buffer("bound", torch.tensor(float("inf")), persistent=False)
    check_weights(model, "x")


def test_dropout_of_every_kind_is_taken_away(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    """OPT drops by a function, with rates in attributes of its layers."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=340, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, dropout=0.5,
        attention_dropout=0.5, max_position_embeddings=64, word_embed_proj_dim=16, bos_token_id=1,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    written = OPTForCausalLM(config).eval()
    written.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    policy: Any = load_policy(str(tmp_path))
    assert policy.training
    text = Text((5,), (9, 40, 41, 7, 60))
    with torch.no_grad():
        torch.testing.assert_close(plain_logprobs(policy, text), plain_logprobs(written, text))
    block = nn.Sequential(nn.Dropout(0.3))
    block.dropout, block.drop_path, block.scale, block.dropped = 0.5, 0.1, 0.7, "no"  # type: ignore[assignment]
    _without_dropout(block)
    kept = (block[0].p, block.dropout, block.drop_path, block.scale, block.dropped)
    assert kept == (0.0, 0.0, 0.0, 0.7, "no")


@pytest.mark.parametrize(("eps", "same"), [(1e-6, True), (1.0, False)])
def test_an_export_of_adapters_on_a_bfloat16_base_may_differ_by_its_rounding(
    tiny_model: Path, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, eps: float, same: bool
) -> None:
    policy: Any = load_policy(str(tiny_model), "bfloat16", LoRA(4, 8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    policy.get_base_model().config.rms_norm_eps = eps  # in the file alone
    probe = tiny_tokenizer.encode("take mug and open the safe")
    if same:
        export_policy(policy, tiny_tokenizer, tmp_path / "out", probe)
    else:
        with pytest.raises(ExportError, match=r"by [\d.]+ nats a token \(tolerance 0\.15\)"):
            export_policy(policy, tiny_tokenizer, tmp_path / "out", probe)


@pytest.mark.parametrize(
    ("dtype", "own", "other"),
    [
        ("float32", "EXACT_TOLERANCE", "COARSE_TOLERANCE"),
        ("bfloat16", "COARSE_TOLERANCE", "EXACT_TOLERANCE"),
    ],
)
def test_an_export_may_differ_by_all_of_its_tolerance(
    tiny_model: Path,
    tiny_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: Any,
    own: str,
    other: str,
) -> None:
    """A plain model is written as it is, so the difference is 0."""
    policy = load_policy(str(tiny_model), dtype)
    monkeypatch.setattr(exporting, own, 0.0)
    monkeypatch.setattr(exporting, other, -1.0)
    export_policy(policy, tiny_tokenizer, tmp_path / "out", [5, 9, 40])
    monkeypatch.setattr(exporting, own, -1.0)
    with pytest.raises(ExportError, match=r"by 0 nats a token \(tolerance -1\)"):
        export_policy(policy, tiny_tokenizer, tmp_path / "out", [5, 9, 40])


@pytest.mark.parametrize(("count", "rest"), [(2, ""), (16, ""), (17, " and 1 more"), (20, " and 4 more")])
def test_errors_name_sixteen_samples_at_most(count: int, rest: str) -> None:
    module = WorldModelSFT(model="m")
    names = [f"s{n}" for n in range(count)]
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(model=None))  # type: ignore[assignment]

    def backward() -> None:
        module.check_finite(torch.tensor(1e30), ["fine"])
        module.check_finite(torch.tensor(float("-inf")), names)

    with pytest.raises(NonFiniteError, match="the loss is -inf; nothing was updated") as caught:
        module.accumulate(backward)
    assert str(caught.value).endswith(f"Samples: {', '.join(names[:16])}{rest}")
