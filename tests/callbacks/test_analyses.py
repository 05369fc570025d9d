"""Analyses around the real trainer on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rwml_callbacks import CapabilityProbe, WeightChange
from rwml_callbacks.capability_probe import general_text, text_perplexity
from rwml_callbacks.instruction_checks import CHECKS

from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules import LoRA, WorldModelGRPO
from rwml_lightning.run import RunFolder
from rwml_lightning.summary import print_summary
from rwml_lightning.trace import TraceReader
from support.callback_runs import Clean, fit, records, run, write
from support.runs import rows_of


@pytest.mark.heavy
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_weight_change_follows_the_weights(
    tiny_model: Path, tmp_path: Path, lora: LoRA | None, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = run(
        tmp_path, tiny_model, WeightChange(every_n_steps=2), lora=lora, learning_rate=1e-3 if lora else 1e-5
    )
    found = records(tmp_path, "weight_change")
    assert [record["step"] for record in found] == [0, 2, 4]
    assert set(found[0]["metrics"].values()) == {0.0}
    assert 0 < found[1]["metrics"]["change/q"] < 1
    assert (found[-1]["metrics"]["change/embeddings"] > 0) == (lora is None)
    module = trainer.lightning_module
    assert isinstance(module, WorldModelGRPO)
    weights = dict(module.generator_tensors())
    assert sum(row["total"] for row in found[-1]["details"]) == sum(w.numel() for w in weights.values())
    started = WorldModelGRPO(model=str(tiny_model))
    started.configure_model()
    start = dict(started.generator_tensors())
    name = "model.layers.1.self_attn.q_proj.weight"
    changed = (weights[name] - start[name]).abs() > 1e-3 * weights[name].abs().maximum(start[name].abs())
    (row,) = [r for r in found[-1]["details"] if (r["layer"], r["module"]) == (1, "q")]
    assert row["changed"] == changed.sum() > 0
    with TraceReader(tmp_path / "trace.db") as reader:
        stored = [e for e in reader.evaluations() if e.name == "weight_change"]
    assert [(e.step, e.result["metrics"]) for e in stored] == [(r["step"], r["metrics"]) for r in found]
    logged = [
        (step, value) for _, step, name, value in rows_of(tmp_path / "metrics.csv") if name == "change/q"
    ]
    assert logged == [(r["step"], r["metrics"]["change/q"]) for r in found]
    assert "Changed weights, per cent of scalars" in capsys.readouterr().out


@pytest.mark.heavy
def test_another_start_is_found_out_before_training(
    tiny_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("rwml_callbacks.weight_change.starting_weights", lambda *_: {"a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"the weight model\.embed_tokens\.weight has no counterpart"):
        run(tmp_path, tiny_model, WeightChange())
    with TraceReader(tmp_path / "trace.db") as reader:
        assert reader.steps("wm_grpo") == []


def test_perplexity_is_that_of_the_plain_model(tiny_model: Path) -> None:
    module = WorldModelGRPO(model=str(tiny_model))
    module.configure_model()
    texts = general_text()
    assert len(texts) >= 6
    losses, tokens = 0.0, 0
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([module.tokenizer.encode(text)[:256]])
            losses += module.policy(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    assert text_perplexity(module) == pytest.approx(math.exp(losses / tokens), rel=1e-4)


@pytest.mark.heavy
def test_a_probed_run_learns_the_same(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, clean = [], Clean()
    for name, callbacks in (
        ("plain", ()),
        ("probed", (CapabilityProbe(1, max_tokens=8), WeightChange(1), clean)),
    ):
        (tmp_path / name).mkdir()
        trainer = run(tmp_path / name, tiny_model, *callbacks)
        weights.append(list(trainer.lightning_module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert clean.training == [True] * 4
    found = records(tmp_path / "probed", "capability_probe")
    assert [record["step"] for record in found] == [0, 1, 2, 3, 4]
    assert len({record["metrics"]["probe/perplexity"] for record in found}) == 5  # of five versions
    assert found[0]["details"]["answers"].keys() == {check.name for check in CHECKS}
    assert all(0 <= record["metrics"]["probe/instructions"] <= 1 for record in found)
    out = capsys.readouterr().out
    assert "before" in out
    assert f"{found[0]['metrics']['probe/perplexity']:.3f}" in out
    assert f"{found[-1]['metrics']['probe/perplexity']:.3f}" in out


@pytest.mark.heavy
def test_the_probe_asks_for_its_generator_to_be_up_to_date(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CapabilityProbe needs the callback WeightSync"):
        fit(tmp_path, tiny_model, [CapabilityProbe()], HFGenerator(str(tiny_model), device="cpu"))


class Stop(L.Callback):
    """Ends the run in an exception."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise OSError("stopped here")


@pytest.mark.heavy
@pytest.mark.parametrize(("at", "resume"), [(1, False), (3, True)])
def test_a_resumed_run_measures_each_step_once(
    tiny_model: Path, tmp_path: Path, at: int, resume: bool
) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", filename="last", every_n_train_steps=2)
    probe = CapabilityProbe(1, max_tokens=8)
    with pytest.raises(OSError, match="stopped here"):
        run(tmp_path, tiny_model, keep, probe, Stop(at))
    asked: list[int] = []

    class Watched(CapabilityProbe):
        def measure(self, trainer: L.Trainer, module: Any) -> Any:
            asked.append(trainer.global_step)
            return super().measure(trainer, module)

    Watched.__qualname__ = "CapabilityProbe"  # the key of its state in the checkpoint
    checkpoint = tmp_path / "kept" / "last.ckpt" if resume else None
    run(tmp_path, tiny_model, Watched(1, max_tokens=8), ckpt_path=checkpoint)
    assert asked == ([2, 3, 4] if resume else [1, 2, 3, 4])
    assert [record["step"] for record in records(tmp_path, "capability_probe")] == [0, 1, 2, 3, 4]
    rows = [(step, name) for _, step, name, _ in rows_of(tmp_path / "metrics.csv")]
    assert sorted(rows) == sorted(set(rows))
    assert [step for step, name in rows if name == "probe/perplexity"] == [0, 1, 2, 3, 4]
    assert [step for step, name in rows if name == "wm/reward"] == [1, 2, 3, 4]


@pytest.mark.heavy
def test_a_run_that_ended_unmeasured_is_measured_when_it_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", filename="last", every_n_train_steps=4)
    run(tmp_path, tiny_model, keep, WeightChange())
    whole, rows = records(tmp_path, "weight_change"), rows_of(tmp_path / "metrics.csv")
    (tmp_path / "weight_change.json").write_text(json.dumps(whole[:1]))
    run(tmp_path, tiny_model, WeightChange(), ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert records(tmp_path, "weight_change") == whole
    assert rows_of(tmp_path / "metrics.csv") == rows


@pytest.mark.heavy
def test_a_stage_that_was_stopped_is_not_at_its_end(tiny_model: Path, tmp_path: Path) -> None:
    class Ask(L.Callback):
        stop_requested = False

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = self.stop_requested = trainer.global_step == 2

    run(tmp_path, tiny_model, WeightChange(), Ask())
    assert [record["step"] for record in records(tmp_path, "weight_change")] == [0]


@pytest.mark.parametrize("kind", [WeightChange, CapabilityProbe])
def test_bad_settings(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.every_n_steps is 0; it must be at least 1"):
        kind(every_n_steps=0)
    with pytest.raises(ValueError, match=r"WeightChange\.tolerance is -1; it must not be negative"):
        WeightChange(tolerance=-1)


def test_rows_of_a_step_are_replaced_by_who_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = [
        (0, "val/x"),
        (0, "probe/x"),
        (1, "wm/x"),
        (1, "val/x"),
        (1, "probe/x"),
        (2, "wm/x"),
        (2, "probe/x"),
    ]
    everything = [("wm_grpo", step, name, 1.0) for step, name in rows]
    write(path, *everything)
    write(path, *everything)  # begun anew
    assert rows_of(path) == everything
    write(path, *everything[4:])  # resumed after the first step
    assert rows_of(path) == everything
    write(path, *everything[6:])  # resumed after the last
    assert rows_of(path) == everything


@pytest.mark.heavy
def test_the_summary_of_a_run_is_of_held_out_results(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, tiny_model, WeightChange())
    capsys.readouterr()
    print_summary(RunFolder(tmp_path))
    assert "Held-out predictions" in capsys.readouterr().out
