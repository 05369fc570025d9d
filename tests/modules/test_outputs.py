"""What a step gives back beside its metrics, whom its errors name, and how the metrics of an evaluation are logged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from rwml_lightning.modules import PolicyGRPO, PolicySFT, WorldModelGRPO, WorldModelSFT
from rwml_lightning.modules.base import NonFiniteError
from rwml_lightning.schema import EpisodeBatch, LabelledBatch
from support.plain_grpo import make_batch, make_episodes
from support.training import LABELS, fit
from support.validation import GAMES, GROUPS, Prepared, held_out, make_trainer


def counting_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is three seconds after the one before."""
    ticks = iter(range(100, 10_000, 3))
    monkeypatch.setattr("rwml_lightning.modules.sft.time.perf_counter", lambda: float(next(ticks)))


@pytest.mark.parametrize("kind", [WorldModelGRPO, PolicyGRPO])
def test_a_batch_comes_back_with_the_seconds_of_its_update(
    tiny_model: Path, model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    batch: Any = make_batch(model) if kind is WorldModelGRPO else make_episodes(model)
    batch = replace(batch, seconds={"generate": 5.0})
    module = kind(model=str(tiny_model))
    step = module.training_step

    def timed(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            counting_clock(patch)
            return step(*arguments)

    module.training_step = timed
    steps = fit(module, [batch])
    (output,), (metrics,) = steps.outputs, steps.metrics
    assert output["batch"].seconds == {"generate": 5.0, "update": 3.0}
    assert (metrics["time/generate"], metrics["time/update"]) == (5.0, 3.0)
    assert metrics["throughput/trained_tokens_per_s"] == metrics["train/trained_tokens"] / 3 > 0
    assert replace(output["batch"], seconds=batch.seconds, groups=batch.groups) == batch


@pytest.mark.parametrize("kind", [WorldModelSFT, PolicySFT])
def test_an_update_on_labels_says_its_seconds(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    module = kind(model=str(tiny_model))
    step = module.training_step

    def timed(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            counting_clock(patch)
            return step(*arguments)

    module.training_step = timed
    steps = fit(module, [LabelledBatch(0, LABELS)])
    (metrics,) = steps.metrics
    assert (metrics["time/update"], metrics["train/trained_tokens"]) == (3.0, 6.0)
    assert metrics["throughput/trained_tokens_per_s"] == 2.0


def test_only_the_labels_of_a_broken_loss_are_named(tiny_model: Path) -> None:
    module = WorldModelSFT(model=str(tiny_model), max_tokens_per_micro_batch=3)
    module.configure_model()
    policy: Any = module.policy
    policy.model.norm.register_forward_hook(
        lambda _, __, hidden: hidden * (float("nan") if hidden.shape[1] == 2 else 1.0)
    )
    sizes: list[int] = []
    policy.model.embed_tokens.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[1]))
    with pytest.raises(NonFiniteError, match=r"the loss is nan; nothing was updated\. Samples: b$"):
        fit(module, [LabelledBatch(0, LABELS)])
    assert sizes.count(2) == 1


def test_turns_behind_a_broken_gradient_are_named(tiny_model: Path, model: LlamaForCausalLM) -> None:
    module = PolicyGRPO(model=str(tiny_model))
    module.configure_model()
    module.policy.model.norm.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match=r"Samples of this step: a/0, a/1, b/0, b/1, b/2$"):
        fit(module, [make_episodes(model)])


@pytest.mark.parametrize("kind", [WorldModelGRPO, PolicyGRPO])
def test_callbacks_hear_of_an_evaluation_once_and_loggers_not_through_lightning(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Any]
) -> None:
    predicted = [held_out(*GROUPS)]
    data = Prepared(predicted) if kind is WorldModelGRPO else Prepared([EpisodeBatch(0, 0, GAMES)], predicted)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(kind, "log_dict", lambda self, metrics, **options: asked.append(options))
    make_trainer().validate(kind(model=str(tiny_model)), data, verbose=False)
    assert asked == [{"batch_size": 1, "logger": False}]
