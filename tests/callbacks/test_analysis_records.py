"""What analyses keep, skip, ask and show, with a measurement of the test's own."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning as L
import pytest
import rwml_callbacks.forgetting
from rwml_callbacks import CapabilityProbe, Forgetting, RewardLogger, TraceRecorder, WeightChange, WeightSync
from rwml_callbacks.analysis import Analysis, Measurement, find
from rwml_callbacks.capability_probe import general_text, text_perplexity
from rwml_callbacks.forgetting import PAPER_TASKS, _values, obstacle
from rwml_callbacks.instruction_checks import CHECKS

from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.schema import Completion, Sampling

MODULE: Any = WorldModelGRPO(model="none")


class Count(Analysis):
    """Counts how often it measures."""

    name: ClassVar[str] = "count"

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__(every_n_steps)
        self.num_measured = 0

    def measure(self, trainer: L.Trainer, module: Any) -> Measurement:
        assert module is MODULE
        self.num_measured += 1
        return Measurement({"count/a": self.num_measured / 4, "count/b/c": 2.0}, ["details"])


def make_trainer(step: int, *callbacks: Any, first: bool = True) -> Any:
    return SimpleNamespace(global_step=step, callbacks=list(callbacks), loggers=[], is_global_zero=first)


def at(analysis: Analysis, step: int, *callbacks: Any) -> None:
    trainer = MODULE._trainer = make_trainer(step, *callbacks)
    analysis.on_train_batch_start(trainer, MODULE, None, 0)


@pytest.mark.parametrize(
    ("every", "steps", "measured"),
    [
        (None, [0, 1, 2, 50], [0]),
        (1, [0, 1, 2], [0, 1, 2]),
        (3, [0, 1, 2, 3, 4, 5, 6], [0, 3, 6]),
        (3, [0, 2, 4, 8, 9], [0, 4, 8, 9]),  # steps of several at once
        (3, [4, 5, 6], [4, 6]),  # begun in between
    ],
)
def test_when_something_is_measured(every: int | None, steps: list[int], measured: list[int]) -> None:
    analysis, found = Count(every), []
    for step in steps:
        before = analysis.num_measured
        at(analysis, step)
        found += [step] * (analysis.num_measured - before)
    assert found == measured
    assert analysis.state_dict() == {
        "measured_at": measured[-1],
        "first": {"count/a": 0.25, "count/b/c": 2.0},
    }


def test_results_lie_beside_the_store_and_a_repeated_step_replaces_its_own(tmp_path: Path) -> None:
    recorder, logger = TraceRecorder(tmp_path / "trace.db"), RewardLogger(tmp_path / "metrics.csv")
    other = {"stage": "wm_sft", "step": 9, "metrics": {"count/a": 9.0}, "details": None}
    (tmp_path / "count.json").write_text(json.dumps([other]))
    analysis = Count(1)
    for step in (0, 1, 2, 1):
        analysis._measured_at = -1
        at(analysis, step, logger, recorder)
    recorder.teardown(make_trainer(0), MODULE, "fit")
    kept = json.loads((tmp_path / "count.json").read_text())
    assert kept[0] == other  # of another stage
    assert [(r["step"], r["metrics"]["count/a"]) for r in kept[1:]] == [(0, 0.25), (1, 1.0)]
    assert kept[-1] == {
        "stage": "wm_grpo", "step": 1, "metrics": {"count/a": 1.0, "count/b/c": 2.0}, "details": ["details"],
    }  # fmt: skip
    assert [file.name for file in tmp_path.glob("count*")] == ["count.json"]


def test_only_the_start_of_the_same_stage_is_taken_over(tmp_path: Path) -> None:
    recorder, analysis = TraceRecorder(tmp_path / "trace.db"), Count()
    rows = [("wm_sft", 0, 5.0), ("wm_grpo", 3, 6.0), ("wm_grpo", 0, 7.0)]
    written = [{"stage": a, "step": b, "metrics": {"count/a": c}, "details": [c]} for a, b, c in rows]
    (tmp_path / "count.json").write_text(json.dumps(written))
    assert analysis._found_before(make_trainer(0, recorder), "wm_grpo") == Measurement(
        {"count/a": 7.0}, [7.0]
    )
    assert analysis._found_before(make_trainer(0, recorder), "policy_grpo") is None
    assert analysis._found_before(make_trainer(1, recorder), "wm_grpo") is None
    assert analysis._found_before(make_trainer(0), "wm_grpo") is None
    at(analysis, 0, recorder)
    assert (analysis.num_measured, analysis.first) == (0, {"count/a": 7.0})
    recorder.teardown(make_trainer(0), MODULE, "fit")


def test_the_table_has_the_start_beside_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    analysis = Count()
    analysis.first = {"count/a": 0.5}
    table = analysis.render(Measurement({"count/a": 0.25, "count/b/c": 2.0}, None))
    assert table.title == "count: before and after training"
    assert table.title_justify == "left"
    assert [(column.header, column.justify, list(column.cells)) for column in table.columns] == [
        ("", "left", ["a", "b/c"]),
        ("before", "right", ["0.500", ""]),
        ("after", "right", ["0.250", "2.000"]),
        ("change", "right", ["-0.250", ""]),
    ]
    for first in (True, False):
        analysis.on_fit_end(make_trainer(4, first=first), MODULE)
        assert ("before and after" in capsys.readouterr().out) == first
    analysis.on_fit_end(make_trainer(4, SimpleNamespace(stop_requested=True)), MODULE)
    assert analysis.num_measured == 2


def test_defaults_and_bounds() -> None:
    assert (Count().every_n_steps, Count(1).every_n_steps, Count().first, Count()._measured_at) == (
        None,
        1,
        {},
        -1,
    )
    with pytest.raises(ValueError, match=r"^Count\.every_n_steps is 0; it must be at least 1$"):
        Count(0)
    assert (CapabilityProbe(3, 5).max_tokens, CapabilityProbe(3, 5).every_n_steps) == (5, 3)
    assert (CapabilityProbe().max_tokens, CapabilityProbe().every_n_steps) == (64, None)
    assert (WeightChange().tolerance, WeightChange().every_n_steps, WeightChange(0.0, 2).every_n_steps) == (
        1e-3,
        None,
        2,
    )
    with pytest.raises(ValueError, match=r"^WeightChange\.tolerance is nan; it must not be negative$"):
        WeightChange(float("nan"))
    logger = RewardLogger()
    assert find(make_trainer(0, WeightSync(), logger), RewardLogger) is logger
    assert find(make_trainer(0, WeightSync()), RewardLogger) is None


class Answers:
    """A data module whose generator answers with the check's number, and whose third prompt opens thinking itself."""

    def __init__(self, events: list[Any]) -> None:
        self.events = events
        self.chat = self.generator = self

    def ask(self, module: Any) -> Answers:
        """The policy's client is the same object."""
        assert module is MODULE
        return self

    def encode_user(self, system: str, text: str) -> list[int]:
        assert system == ""
        return [[check.prompt for check in CHECKS].index(text)]

    def generate(self, prompts: Any, sampling: Sampling, seeds: Any) -> list[list[Completion]]:
        self.events.append((sampling, seeds))
        return [[Completion(tuple(prompt), (), "stop", 0)] for prompt in prompts]

    def decode(self, completion: Completion) -> str:
        (number,) = completion.token_ids
        return "8" if number == 9 else f"thought</think>said {number}"

    def in_thinking(self, prompt: list[int]) -> bool:
        return prompt == [2]


def test_the_probe_asks_the_policy_as_it_is_and_greedily(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    monkeypatch.setattr(WeightSync, "sync", lambda self, module: events.append(module))
    monkeypatch.setattr("rwml_callbacks.capability_probe.text_perplexity", lambda module: 5.0)
    trainer = make_trainer(0, WeightSync())
    trainer.datamodule = Answers(events)
    found = CapabilityProbe(max_tokens=9).measure(trainer, MODULE)
    assert events == [MODULE, (Sampling(9, temperature=0.0), [[0]] * len(CHECKS))]
    names = [check.name for check in CHECKS]
    said = {name: f"said {number}" for number, name in enumerate(names)} | {"number": "8"}
    assert found.details["answers"] == said
    followed = {name for name, passed in found.details["followed"].items() if passed}
    assert followed == {"number", "lower_case"}
    assert found.metrics == {"probe/perplexity": 5.0, "probe/instructions": 2 / len(CHECKS)}


def test_passages_are_read_one_by_one_within_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of twenty tokens of context, where a passage's tokens are its words, each of its own probability."""
    passages = general_text()
    assert all(len(passage.split()) > 20 and passage == passage.strip() for passage in passages)
    assert not any("\n\n" in passage for passage in passages)
    read: list[list[int]] = []

    def score(ids: list[int]) -> list[float]:
        read.append(ids)
        return [-0.1 * len(read)] * (len(ids) - 1)

    monkeypatch.setattr("rwml_callbacks.capability_probe.context_tokens", lambda model: {"m": 20}[model])
    tokenizer = SimpleNamespace(encode=lambda text: list(range(len(text.split()))))
    module: Any = SimpleNamespace(model="m", tokenizer=tokenizer, score=score)
    found = text_perplexity(module)
    assert read == [list(range(20))] * len(passages)
    assert found == pytest.approx(math.exp(0.1 * (len(passages) + 1) / 2))


def test_numbers_of_a_task_are_named_by_metric_and_filter() -> None:
    scores: dict[str, Any] = {
        "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict-match": 1, "exact_match_stderr,strict-match": 0.2,
        "alias": "a", "samples": 5, "odd,none": "N/A",
    }  # fmt: skip
    assert _values("t", scores) == [("t/acc", 0.5), ("t/exact_match_strict-match", 1.0)]


def test_why_a_task_cannot_be_run_is_one_line() -> None:
    def load(tasks: list[str]) -> None:
        asked.append(tasks)
        if tasks == ["away"]:
            raise OSError("\nno such file\nand where it was looked for")
        if tasks == ["needs"]:
            raise ImportError("pip install it")

    asked: list[list[str]] = []
    manager: Any = SimpleNamespace(task_index={"away", "needs", "here"}, load=load)
    assert obstacle(manager, "here") is None
    assert obstacle(manager, "away") == "its data or packages are not available (no such file)"
    assert obstacle(manager, "needs") == "its data or packages are not available (pip install it)"
    assert obstacle(manager, "unknown") == "lm-eval has no task with this name"
    assert asked == [["here"], ["away"], ["needs"]]


def test_settings_of_forgetting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(rwml_callbacks.forgetting, "find_spec", lambda name: asked.append(name) or "there")
    default = Forgetting()
    assert asked == ["lm_eval"]
    assert (default.tasks, default.limit, default.batch_size) == (PAPER_TASKS, 100, 8)
    assert (default.apply_chat_template, default.include_path, default.every_n_steps) == (None, None, None)
    own = Forgetting(["a", "b"], None, 1, False, str(tmp_path), 7)
    assert (own.tasks, own.limit, own.batch_size) == (("a", "b"), None, 1)
    assert (own.apply_chat_template, own.include_path, own.every_n_steps) == (False, str(tmp_path), 7)
    assert Forgetting(limit=1).limit == 1
    with pytest.raises(ValueError, match=r"^Forgetting\.include_path names .*none, which is not a folder$"):
        Forgetting(include_path=str(tmp_path / "none"))


def test_loggers_and_the_file_get_numbers_and_step(tmp_path: Path) -> None:
    got: list[Any] = []
    trainer = make_trainer(6)
    trainer.loggers = [SimpleNamespace(log_metrics=lambda metrics, step: got.append((metrics, step)))] * 2
    logger = RewardLogger(tmp_path / "deep" / "er" / "metrics.csv")
    trainer.callbacks = [logger, RewardLogger(), WeightSync()]
    module = WorldModelGRPO(model="none")
    module.trainer = trainer
    module.publish({"wm/a": 1.5})
    assert got == [({"wm/a": 1.5}, 6)] * 2
    logger.write("wm_grpo", 6, {})
    logger.write("wm_grpo", 6, {"wm/b": 3.0})
    lines = (tmp_path / "deep" / "er" / "metrics.csv").read_text().splitlines()
    assert lines == ["stage,step,name,value", "wm_grpo,6,wm/a,1.5", "wm_grpo,6,wm/b,3.0"]


@pytest.mark.parametrize(
    ("shares", "warned"), [([0.89] * 10, 0), ([0.91] * 9, 0), ([0.91] * 10, 1), ([0.91] * 19, 1)]
)
def test_ten_steps_of_a_tenth_are_enough(
    shares: list[float], warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    logger = RewardLogger()
    with caplog.at_level(logging.WARNING):
        for share in shares:
            logger._watch_variance(share, "Why")
    assert len(caplog.records) == warned
    for record in caplog.records:
        assert record.getMessage() == (
            "Over the last 10 steps only 9 % of groups had members with different rewards; the policy learns nothing from "
            "the other groups. Why, or is the temperature too low?"
        )
    logger, count = RewardLogger(low_variance_share=0.25, patience=1), len(caplog.records)
    logger._watch_variance(0.75, "Why")
    assert len(caplog.records) == count  # the bound itself is enough
