"""What the check after a weight update lets through, and what it does not, at the learning rates in use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rwml_lightning import parallel
from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import HFGenerator, WeightCheck, WeightSyncError
from rwml_lightning.generation.base import UnsupportedAdaptersError
from rwml_lightning.generation.weight_check import COARSE, EXACT, precision_of
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules import LoRA, WorldModelSFT
from rwml_lightning.schema import Sampling

PROBE = [5, 9, 40, 41, 7, 100, 12, 13, 5, 9]
Named = Iterable[tuple[str, Tensor]]


def make_module(folder: Path, **arguments: Any) -> WorldModelSFT:
    module = WorldModelSFT(model=str(folder), **arguments)
    module.configure_model()
    return module


def step(module: WorldModelSFT, size: float = 1e-6) -> None:
    """Moves every trained weight as far as AdamW's first step does."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter).sign(), alpha=size)


class Deaf(HFGenerator):
    """Takes every new version and keeps the weights of the first."""

    def update_weights(self, named_tensors: Named, version: int) -> None:
        if self.weights_digest is None:
            super().update_weights(named_tensors, version)
        self.policy_version = version


class Half(HFGenerator):
    """Takes every other tensor from the second update on, and says so to nobody."""

    def update_weights(self, named_tensors: Named, version: int) -> None:
        own, skips = self._started().state_dict(), self.weights_digest is not None
        mixed = [
            (name, own[name].clone() if skips and number % 2 else tensor)
            for number, (name, tensor) in enumerate(named_tensors)
        ]
        super().update_weights(mixed, version)


class Lazy(HFGenerator):
    """Takes the new tensors, and goes on computing with what it made of the first."""

    old: HFGenerator | None = None

    def update_weights(self, named_tensors: Named, version: int) -> None:
        super().update_weights(named_tensors, version)
        if self.old is None:
            self.old = HFGenerator(self.model, self.dtype, device="cpu", share_weights=False)
            self.old.update_weights(self._started().state_dict().items(), version)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        assert self.old is not None
        return self.old.score(sequences)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Deaf, Half])
def test_old_weights_are_found_out_at_the_learning_rate_in_use(
    tiny_model: Path, dtype: str, kind: Callable[..., HFGenerator]
) -> None:
    module = make_module(tiny_model)
    generator, check = kind(str(tiny_model), dtype, device="cpu", share_weights=False), WeightCheck()
    check.update(generator, module, 0, PROBE)
    for _ in range(12):
        step(module)
    gap = max(abs(a - b) for a, b in zip(generator.score([PROBE])[0], module.score(PROBE), strict=True))
    assert gap < precision_of("float32", dtype).tolerance  # log-probabilities alone would not tell
    with pytest.raises(WeightSyncError, match=r"the weight update at step 12 did not arrive: the digest"):
        check.update(generator, module, 12, PROBE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_that_do_not_move_are_found_out(tiny_model: Path, dtype: str) -> None:
    module = make_module(tiny_model)
    generator, check = (
        Lazy(str(tiny_model), dtype, device="cpu", share_weights=False),
        WeightCheck(tolerance=100.0),
    )
    check.update(generator, module, 0, PROBE)
    size = 1e-6 if dtype == "float32" else 1e-4
    step(module, size)
    check.update(generator, module, 1, PROBE)  # too little to be noticed, but it adds up
    for _ in range(100):
        step(module, size)
    with pytest.raises(WeightSyncError, match=r"changed the trainer's .* and the generator's not at all"):
        check.update(generator, module, 101, PROBE)


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("lora", [None, LoRA(4, 8)])
def test_weights_that_arrive_pass_for_many_steps(tiny_model: Path, dtype: str, lora: LoRA | None) -> None:
    module = make_module(tiny_model, lora=lora)
    generator, check = HFGenerator(str(tiny_model), dtype, device="cpu", share_weights=False), WeightCheck()
    for version in range(5):
        gap = check.update(generator, module, version, PROBE)
        assert gap is not None
        assert gap <= precision_of(generator.weights_dtype).tolerance
        assert check.update(generator, module, version, PROBE) is None  # it has them
        step(module, 1e-3)


@pytest.mark.parametrize("attached", [True, False])
def test_other_weights_of_the_same_version_are_brought(tiny_model: Path, attached: bool) -> None:
    module = make_module(tiny_model)
    generator = HFGenerator(str(tiny_model), device="cpu", share_weights=attached)
    check = WeightCheck()
    check.update(generator, module, 0, PROBE)
    step(module, 1e-2)
    check.update(generator, module, 0, PROBE)
    assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)
    assert generator.generate([PROBE], Sampling(1), [[0]])[0][0].policy_version == 0


def test_a_generator_that_was_closed_gets_them_again(tiny_model: Path) -> None:
    module = make_module(tiny_model)
    step(module, 1e-2)
    generator, check = HFGenerator(str(tiny_model), device="cpu", share_weights=False), WeightCheck()
    check.update(generator, module, 0, PROBE)
    generator.close()
    check.update(generator, module, 0, PROBE)
    assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)


@pytest.mark.parametrize("side", ["trainer", "generator"])
def test_nan_on_either_side_does_not_pass(tiny_model: Path, monkeypatch: Any, side: str) -> None:
    module = make_module(tiny_model)
    generator = HFGenerator(str(tiny_model), device="cpu", share_weights=False)
    broken = [float("nan")] * (len(PROBE) - 1)
    if side == "trainer":
        monkeypatch.setattr(module, "score", lambda ids: broken)
    else:
        monkeypatch.setattr(generator, "score", lambda sequences: [broken])
    with pytest.raises(WeightSyncError, match=r"disagree on a fixed sequence by nan nats"):
        WeightCheck().update(generator, module, 3, PROBE)


def test_another_model_of_the_same_tensors_is_found_out(tiny_model: Path, monkeypatch: Any) -> None:
    module = make_module(tiny_model)
    generator = HFGenerator(str(tiny_model), device="cpu", share_weights=False)
    generator._started().config.rms_norm_eps = 1.0
    for layer in generator._started().modules():
        if hasattr(layer, "variance_epsilon"):
            layer.variance_epsilon = 1.0
    with pytest.raises(WeightSyncError, match=r"generator and trainer disagree on a fixed sequence by \d"):
        WeightCheck().update(generator, module, 1, PROBE)


def test_the_dtype_that_counts_is_the_one_computed_in(tiny_model: Path, tmp_path: Path) -> None:
    load_causal_lm(tiny_model, "bfloat16").save_pretrained(tmp_path / "low")
    assert HFGenerator(str(tmp_path / "low"), "auto", device="cpu").weights_dtype == "bfloat16"
    assert HFGenerator(str(tiny_model), "auto", device="cpu").weights_dtype == "float32"
    assert precision_of("float32", "float32") == EXACT
    assert precision_of("bfloat16", "float32") == precision_of("float32", "float16") == COARSE


def test_an_empty_iterator_counts_as_nothing_taken(tiny_model: Path, monkeypatch: Any) -> None:
    module = make_module(tiny_model)
    nothing: Iterator[tuple[str, Tensor]] = iter(())
    generator = HFGenerator(str(tiny_model), device="cpu", share_weights=False)
    with pytest.raises(ValueError, match=r"weight update: \d+ tensors are missing"):
        generator.update_weights(nothing, 1)
    assert generator.weights_digest is None
    WeightCheck().update(generator, module, 0, PROBE)
    assert generator.weights_digest is not None


@pytest.mark.parametrize(
    ("dtype", "tolerance", "off", "passes"),
    [
        ("float32", None, 0.009, True),
        ("float32", None, 0.011, False),
        ("bfloat16", None, 0.12, True),
        ("bfloat16", None, 0.18, False),
        ("float32", 0.5, 0.45, True),
        ("float32", 0.001, 0.002, False),
    ],
)
def test_the_tolerance_is_a_mean_in_nats(
    tiny_model: Path, monkeypatch: Any, dtype: str, tolerance: float | None, off: float, passes: bool
) -> None:
    module = make_module(tiny_model)
    generator = HFGenerator(str(tiny_model), dtype, device="cpu", share_weights=False)
    asked: list[int] = []

    def score(sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        asked.extend(map(len, sequences))
        ours = module.score(list(sequences[0]))
        return [[value + off * (2 if place % 2 else 0) for place, value in enumerate(ours)]]

    monkeypatch.setattr(generator, "score", score)
    check = WeightCheck(tolerance, num_tokens=9)
    if passes:
        assert check.update(generator, module, 1, PROBE) == pytest.approx(off, rel=1e-3)
    else:
        with pytest.raises(
            WeightSyncError, match=r"disagree on a fixed sequence by [\d.]+ nats a token \(tolerance"
        ):
            check.update(generator, module, 1, PROBE)
    assert asked == [9]


class Apart(HFGenerator):
    """Keeps base weights and adapters apart, and computes with both, as vLLM does."""

    base_digest: str | None = None
    refused: str | None = None
    num_base = 0
    scale = 2.0
    base: dict[str, Tensor]

    def keep_adapters(self, policy: torch.nn.Module) -> bool:
        return self.refused is None and hasattr(policy, "peft_config")

    def refuse_adapters(self, reason: str) -> None:
        self.close()
        self.refused = reason

    def update_weights(self, named_tensors: Named, version: int) -> None:
        super().update_weights(named_tensors, version)
        self.base = {name: tensor.clone() for name, tensor in self._started().state_dict().items()}
        self.base_digest = self.weights_digest
        self.num_base += 1

    def update_adapters(self, named_tensors: Named, version: int) -> None:
        adapters = dict(named_tensors)
        own = self._started().state_dict()
        for name, b in adapters.items():
            if ".lora_B." in name:
                weight = name.removeprefix("base_model.model.").replace(".lora_B", "")
                own[weight].copy_(
                    self.base[weight] + self.scale * b @ adapters[name.replace("lora_B", "lora_A")]
                )
        digests = [tensor_digest(name, tensor) for name, tensor in adapters.items()]
        assert self.base_digest is not None
        self.weights_digest = combine_digests([int(self.base_digest, 16), *digests])
        self.policy_version = version


def make_apart(folder: Path, kind: type[Apart] = Apart, **arguments: Any) -> tuple[Apart, WorldModelSFT]:
    module = make_module(folder, lora=LoRA(4, 8), **arguments)
    return kind(str(folder), device="cpu", share_weights=False), module


@pytest.mark.heavy
@pytest.mark.parametrize("inference", [True, False])  # the first update is before an evaluation
def test_the_base_travels_once_and_then_the_adapters_alone(tiny_model: Path, inference: bool) -> None:
    generator, module = make_apart(tiny_model)
    trained = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    check = WeightCheck()
    with torch.inference_mode(inference):
        assert check.update(generator, module, 0, PROBE) == pytest.approx(0, abs=1e-5)
    assert all(
        torch.equal(p, trained[name]) for name, p in module.policy.named_parameters()
    )  # the trial is over
    for version in (1, 2, 3):
        step(module, 1e-2)
        gap = check.update(generator, module, version, PROBE)
        assert gap == pytest.approx(0, abs=1e-5)
        assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)
        assert check.update(generator, module, version, PROBE) is None
        assert (
            WeightCheck().update(generator, module, version, PROBE) is None
        )  # another check sees it as well
    assert (generator.num_base, generator.refused) == (1, None)
    assert module.score(PROBE) != pytest.approx(make_module(tiny_model).score(PROBE), abs=1e-3)


@pytest.mark.heavy
def test_another_base_travels_again(tiny_model: Path) -> None:
    generator, module = make_apart(tiny_model)
    check = WeightCheck()
    check.update(generator, module, 0, PROBE)
    with torch.no_grad():
        for parameter in module.policy.parameters():
            parameter.mul_(1.01)  # as a checkpoint's weights that are loaded into the same module
    check.update(generator, module, 0, PROBE)
    assert generator.num_base == 2
    assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)
    generator.base_digest = None  # as after a restart of the engine
    step(module, 1e-3)
    check.update(generator, module, 1, PROBE)
    assert generator.num_base == 3


class DeafApart(Apart):
    """Takes the first adapters, and then says of all later ones that it has them."""

    num_adapters = 0

    def update_adapters(self, named_tensors: Named, version: int) -> None:
        self.num_adapters += 1
        if self.num_adapters <= 2:  # those of the trial, and the first
            super().update_adapters(named_tensors, version)
        self.policy_version = version


class WrongScale(Apart):
    scale = 1.5


class Refusing(Apart):
    def update_adapters(self, named_tensors: Named, version: int) -> None:
        raise UnsupportedAdaptersError("it has no such layer")


@pytest.mark.heavy
def test_adapters_that_were_left_out_are_found_out(tiny_model: Path) -> None:
    generator, module = make_apart(tiny_model, DeafApart)
    check = WeightCheck()
    check.update(generator, module, 0, PROBE)
    step(module)
    assert generator.score([PROBE])[0] == pytest.approx(module.score(PROBE), abs=1e-4)
    with pytest.raises(WeightSyncError, match=r"the weight update at step 1 did not arrive: the digest"):
        check.update(generator, module, 1, PROBE)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            WrongScale,
            r"with random adapters, its log-probabilities differ from the trainer's by \d\.\d{4} nats",
        ),
        (Refusing, "it has no such layer"),
    ],
)
def test_adapters_that_do_not_work_are_merged(tiny_model: Path, kind: type[Apart], reason: str) -> None:
    generator, module = make_apart(tiny_model, kind)
    check = WeightCheck()
    for version in (0, 1):  # new adapters have no effect that could be wrong
        assert check.update(generator, module, version, PROBE) == pytest.approx(0, abs=1e-5)
        assert re.match(reason, generator.refused or "")
        assert generator.weights_digest == generator.base_digest  # the merged weights
        step(module, 1e-2)
    assert generator.num_base == 3


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ({bool: False}, "the engine of another rank cannot"),
        ({bool: True, type(None): "it has no such layer"}, "it has no such layer"),
    ],
)
def test_adapters_that_do_not_work_on_another_rank_are_merged_on_all(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, theirs: dict[type, Any], reason: str
) -> None:
    generator, module = make_apart(tiny_model)
    monkeypatch.setattr(parallel, "gather", lambda own: [own, theirs.get(type(own))])
    assert WeightCheck().update(generator, module, 0, PROBE) == pytest.approx(0, abs=1e-5)
    assert generator.refused == reason
    assert generator.weights_digest == generator.base_digest
