"""What the easy-sample filter hands from part to part: settings, shares of ranks, files, decisions; no model is trained."""

from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from filelock import FileLock, Timeout
from rwml_callbacks import (
    EasySampleFilter,
    RewardLogger,
    RolloutProgressBar,
    TraceRecorder,
    WeightSync,
)
from rwml_callbacks.easy_samples import copy as easy_sample_copy
from rwml_callbacks.easy_samples import filter as easy_sample_filter
from rwml_callbacks.easy_samples import parts as scored_parts
from rwml_callbacks.easy_samples.columns import read_filter_columns
from rwml_callbacks.easy_samples.copy import CopyData, predict_with_copy
from rwml_callbacks.easy_samples.marks import Marks, mark_easy, mean_rewards
from rwml_callbacks.easy_samples.parts import Answers, ScoredParts, Throughput, read_parts, write_part
from rwml_callbacks.easy_samples.report import filter_metrics, log_filter

from rwml_lightning import parallel
from rwml_lightning.data.rollouts import member_seeds
from rwml_lightning.generation import HFGenerator
from rwml_lightning.modules import WorldModelGRPO
from rwml_lightning.schema import Completion, LabelledBatch, Sampling
from rwml_lightning.terminal import Terminal
from rwml_lightning.trace import TraceReader
from support.easy_samples import columns, make_data, make_filter
from support.recorder import Recorder
from support.worlds import make_transition, make_world

TRAIN = [t for t in make_world() if t.split == "train"]


class Predicts:
    """Stands for the copy: predicts every other transition right in half of its samples, and the others never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[CopyData, float, ScoredParts]] = []
        monkeypatch.setattr(easy_sample_filter, "predict_with_copy", self)

    def __call__(
        self, trainer: Any, model: Any, data: CopyData, learning_rate: float, parts: ScoredParts
    ) -> None:
        assert isinstance(trainer, L.Trainer)
        assert isinstance(model, WorldModelGRPO)
        self.calls.append((data, learning_rate, parts))
        half = len(data.judged) // 2
        for part in (data.judged[:half], data.judged[half:]):
            texts = [[t.next_state if t in TRAIN[::2] else "no", "no"] for t in part]
            write_part(parts.folder, parts.score(Answers(part, texts, 1, 0.0)), Throughput(100, 2.0, 1.0))  # type: ignore[arg-type]
            parts.heartbeat()


def make_trainer(*callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=list(callbacks))


def test_the_copy_gets_the_filter_s_settings_and_all_that_is_left(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predicts, data = Predicts(monkeypatch), make_data(tmp_path)
    own = make_filter(
        num_samples=3, learning_rate=0.5, batch_size=5, num_passes=6, prompts_per_batch=7, seed=8, tau_d=0.3
    )
    with caplog.at_level(logging.WARNING):
        own.prepare_run(make_trainer(), WorldModelGRPO(model=str(tiny_model)), data)
    ((copy, learning_rate, parts),) = predicts.calls
    assert learning_rate == 0.5
    assert (copy.batch_size, copy.num_passes, copy.num_samples, copy.prompts_per_batch, copy.seed) == (
        5,
        6,
        3,
        7,
        8,
    )
    assert (copy.data, copy.generator, copy.probe_ids()) == (data, data.generator, data.probe_ids())
    assert sorted(t.transition_id for t in copy.judged) == sorted(t.transition_id for t in TRAIN)
    assert {t.split for t in copy.taught} == {"validation"}
    assert parts.total == len(TRAIN)
    assert parts.folder.parent == tmp_path
    assert caplog.messages == [
        "easy-sample filter: a copy of the model is trained on 8 transitions, then predicts 32, 3 times each"
    ]


@pytest.mark.parametrize("restart", [False, True])
def test_what_is_decided_is_written_reported_and_kept(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    restart: bool,
) -> None:
    predicts, data = Predicts(monkeypatch), make_data(tmp_path)
    recorder, model = TraceRecorder(tmp_path / "trace.db"), WorldModelGRPO(model=str(tiny_model))
    settings = {"tau_easy": 0.5, "keep_probability": 0.4, "seed": 3}
    easy = {t.transition_id for t in TRAIN[::2]}
    if restart:  # the columns of an earlier run serve, and what they say stays
        make_filter(**settings).prepare_run(make_trainer(), model, make_data(tmp_path))
        before = (tmp_path / "t.parquet").stat().st_mtime_ns
    own = make_filter(**settings)
    own.prepare_run(make_trainer(recorder), model, data)
    own.prepare_run(make_trainer(recorder), model, data)  # once
    assert len(predicts.calls) == 1
    if restart:
        assert (tmp_path / "t.parquet").stat().st_mtime_ns == before
    rewards = {t.transition_id: 0.5 if t.transition_id in easy else 0.0 for t in TRAIN}
    marks = mark_easy(rewards, 0.5, 0.3, 0.4, seed=3)
    assert 0 < len(marks.easy_kept) < len(easy)
    expected = {t.transition_id: (None, None) for t in make_world()} | {
        name: (reward, name in marks.kept) for name, reward in rewards.items()
    }
    assert columns(tmp_path) == expected
    found = read_filter_columns(tmp_path / "t.parquet")
    assert found is not None
    assert found.settings["decision"] == {"tau_easy": 0.5, "target_share": 0.3, "keep_probability": 0.4}
    assert found.settings["throughput"] == {"num_tokens": 200, "seconds": 4.0, "generate_seconds": 2.0}
    assert data.prediction_source._only == marks.kept
    said = f"16 of 32 training transitions are easy (mean reward >= 0.5); {len(marks.easy_kept)} of them kept"
    assert capsys.readouterr().err.count(said) == 1 + restart
    assert not list(tmp_path.glob("*.filter-*"))
    recorder.teardown(make_trainer(), model, "fit")
    with TraceReader(tmp_path / "trace.db") as reader:
        (evaluation,) = reader.evaluations()
    assert (evaluation.name, evaluation.stage, evaluation.step) == ("easy_samples", "wm_grpo", 0)
    assert evaluation.result == {
        "filter/judged": 32.0, "filter/easy": 16.0, "filter/easy_kept": float(len(marks.easy_kept)), "filter/tau_easy": 0.5,
        "filter/generator_share_of_time": 0.5, "throughput/filter_tokens_per_s": 50.0,
        "histogram": [16, 0, 0, 0, 0, 16, 0, 0, 0, 0],
    }  # fmt: skip


def test_a_share_of_the_training_split_is_taught_and_stays(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicts, data = Predicts(monkeypatch), make_data(tmp_path)
    own = make_filter(train_on="train", train_share=0.25, tau_easy=0.5, keep_probability=0.0)
    own.prepare_run(make_trainer(), WorldModelGRPO(model=str(tiny_model)), data)
    ((copy, _, parts),) = predicts.calls
    taught, judged = ({t.transition_id for t in part} for part in (copy.taught, copy.judged))
    assert (len(taught), len(judged), parts.total) == (8, 24, 24)
    easy = {t.transition_id for t in TRAIN[::2]}
    assert data.prediction_source._only == taught | (judged - easy)
    again = make_filter(train_on="train", train_share=0.25, seed=1)._choose(
        make_data_ready(tmp_path, tiny_model)
    )
    assert {t.transition_id for t in again[0]} != taught


def make_data_ready(folder: Path, model: Path) -> Any:
    data = make_data(folder)
    easy_sample_filter._make_ready(make_trainer(), WorldModelGRPO(model=str(model)), data)
    return data


def test_what_goes_wrong_is_recorded(tiny_model: Path, tmp_path: Path) -> None:
    recorder, data = TraceRecorder(tmp_path / "trace.db"), make_data(tmp_path, prompts_per_step=33)
    model = WorldModelGRPO(model=str(tiny_model))
    with pytest.raises(ValueError, match="32 training transitions are there, fewer than one batch"):
        make_filter().prepare_run(make_trainer(recorder), model, data)
    recorder.teardown(make_trainer(), model, "fit")
    with TraceReader(tmp_path / "trace.db") as reader:
        assert reader.run().status == "failed"
        assert (reader.run().detail or "").startswith("ValueError: ")


DEFAULTS = {
    "num_samples": 10, "tau_d": 0.1, "reward": None, "tau_easy": None, "target_share": 0.3, "keep_probability": 0.1,
    "train_on": "validation", "train_share": 1.0, "learning_rate": 2e-6, "batch_size": 32, "num_passes": 2,
    "prompts_per_batch": 64, "seed": 0,
}  # fmt: skip


def test_defaults_are_the_paper_s_and_bounds_hold() -> None:
    own = EasySampleFilter()
    assert {name: getattr(own, name) for name in DEFAULTS} == DEFAULTS
    for edge in (
        {"num_samples": 1, "batch_size": 1, "num_passes": 1, "prompts_per_batch": 1},
        {"keep_probability": 0.0, "tau_d": 2.0, "tau_easy": 1e-9},
        {"keep_probability": 1.0, "target_share": 0.999, "train_share": 1e-9},
    ):
        assert {name: getattr(EasySampleFilter(**edge), name) for name in edge} == edge  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0), ("num_passes", 0), ("prompts_per_batch", 0), ("target_share", 0.0), ("train_share", 1.01),
        ("train_share", -0.1), ("keep_probability", -0.1), ("tau_d", 2.01), ("tau_easy", -1.0),
    ],
)  # fmt: skip
def test_settings_beyond_their_bounds_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^EasySampleFilter's {name} is {value}"):
        EasySampleFilter(**{name: value})


class Chat:
    """Decodes a completion to its answer; every other prompt is already inside thinking."""

    def decode(self, completion: Completion) -> str:
        return f"<next_state>{completion.token_ids[0]}</next_state>"

    def in_thinking(self, prompt: list[int]) -> bool:
        return prompt[0] % 2 == 0


class Samples:
    """A generator that answers with the prompt's only token, as many times as it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def generate(self, prompts: Any, sampling: Any, seeds: Any) -> list[list[Completion]]:
        self.asked.append((prompts, sampling, seeds))
        time.sleep(0.02)
        return [
            [Completion((prompt[0], 0, 0), (), "stop", 0) for _ in own]
            for prompt, own in zip(prompts, seeds, strict=True)
        ]


def test_each_rank_asks_for_its_share_and_reads_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    world, generator = [make_transition(number) for number in range(5)], Samples()
    prompt = SimpleNamespace(encode=lambda chat, t: [int(t.transition_id[1:])])
    main: Any = SimpleNamespace(
        generator=generator,
        ask=lambda module: SimpleNamespace(chat=Chat()),
        need_predictions=lambda: SimpleNamespace(sampling=Sampling(9), prompt=prompt),
    )
    copy = CopyData(main, world, world, 2, 1, 3, 5, seed=5)

    def answers_of(rank: int) -> Any:
        copy.trainer = SimpleNamespace(lightning_module=None)  # type: ignore[assignment]
        share = slice(3) if rank == 0 else slice(3, None)
        monkeypatch.setattr(parallel, "roll_out_own", lambda items, make: make(items[share]))
        (answers,) = copy.predict_dataloader()
        return answers

    answers, own = answers_of(1), [world[3], world[4]]
    seeds = member_seeds(5, "easy_sample_filter", 0, own, 3)
    assert generator.asked == [([[3], [4]], Sampling(9), seeds)]
    assert answers.transitions == own
    assert answers.predictions == [["3"] * 3, [None] * 3]  # an even one was thought
    assert answers.num_tokens == 2 * 3 * 3
    assert 0.02 <= answers.generate_seconds < 10
    answers = answers_of(0)
    assert answers.transitions == world[:3]
    assert answers.predictions == [[None] * 3, ["1"] * 3, [None] * 3]


def test_the_copy_reads_what_it_is_taught_and_then_what_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    world = [make_transition(number) for number in range(5)]
    chat, labelled = Recorder("chat"), Recorder("batch")
    main: Any = SimpleNamespace(
        generator="generator",
        probe_ids=lambda: [1, 2],
        ask=lambda module: SimpleNamespace(chat=chat(module)),
        need_predictions=lambda: SimpleNamespace(prompt="prompt"),
    )
    monkeypatch.setattr(easy_sample_copy, "label_transitions", labelled)
    copy = CopyData(main, world[:3], world[3:], 2, 4, 3, 6, seed=5)
    copy.trainer = SimpleNamespace(lightning_module="module")  # type: ignore[assignment]
    learns, judges = copy.train_dataloader(), copy.predict_dataloader()
    assert (learns.draw.items, learns.draw.batch_size, learns.draw.num_passes) == (world[:3], 2, 4)
    assert (judges.draw.items, judges.draw.batch_size, judges.draw.make) == (world[3:], 6, copy._answer)
    assert (learns.seed, judges.seed) == (5, None)
    assert (learns.draw.gathered, judges.draw.gathered) == (True, False)
    assert learns.draw.make(7, world[:2]) == LabelledBatch(7, "batch")  # type: ignore[arg-type]
    assert learns.draw.make(8, world[:1]) == LabelledBatch(8, "batch")  # type: ignore[arg-type]
    assert labelled.calls == [(world[:2], "prompt", "chat"), (world[:1], "prompt", "chat")]
    assert chat.calls == [("module",)]
    assert (copy.generator, copy.probe_ids()) == ("generator", [1, 2])
    batch = object()
    assert copy.transfer_batch_to_device(batch, "cuda", 0) is batch


@pytest.mark.parametrize("rank", [0, 1])
def test_data_is_made_ready_as_the_trainer_would(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []
    strategy = SimpleNamespace(connect=lambda model: events.append(("connect", model)))
    monkeypatch.setattr(parallel, "gather", lambda value: events.append("all wait"))
    trainer: Any = SimpleNamespace(strategy=strategy, is_global_zero=rank == 0)
    data: Any = SimpleNamespace(
        trainer=None,
        prepare_data=lambda: events.append(("prepare", data.trainer)),
        setup=lambda stage: events.append((stage, data.trainer)),
    )
    model: Any = "model"
    easy_sample_filter._make_ready(trainer, model, data)
    prepared = [("prepare", trainer)] * (rank == 0)
    assert events == [("connect", "model"), *prepared, "all wait", ("fit", trainer)]
    easy_sample_filter._make_ready(trainer, model, data)  # the trainer's own hooks have done it
    assert len(events) == 3 + len(prepared)


@pytest.mark.parametrize("first", [True, False])
def test_the_first_rank_locks_the_file_for_all(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barriers: list[None] = []
    monkeypatch.setattr(parallel, "gather", barriers.append)
    trainer: Any = SimpleNamespace(is_global_zero=first)
    other = FileLock(tmp_path / ".t.parquet.filter.lock")
    with easy_sample_filter._alone(trainer, tmp_path / "t.parquet"):
        assert len(barriers) == 1
        if first:
            with pytest.raises(Timeout):
                other.acquire(timeout=0)
        else:
            other.acquire(timeout=0)
            other.release()
    other.acquire(timeout=0)
    other.release()


def test_only_training_is_filtered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[Any] = []
    monkeypatch.setattr(EasySampleFilter, "prepare_run", lambda own, *given: applied.append(given))
    trainer: Any = SimpleNamespace(datamodule="data")
    model = WorldModelGRPO(model="none")
    for stage in ("validate", "test", "fit"):
        EasySampleFilter().setup(trainer, model, stage)
    assert applied == [(trainer, model, "data")]


def test_as_many_as_a_batch_are_enough() -> None:
    data: Any = SimpleNamespace(prompts_per_step=4, path="t.parquet")
    easy_sample_filter._check_batch(data, 4, "are there")
    with pytest.raises(ValueError, match=r"^t\.parquet: 3 training transitions remain, fewer than one batch"):
        easy_sample_filter._check_batch(data, 3, "remain")


@pytest.mark.parametrize("first", [True, False])
def test_the_filter_s_bar_is_for_a_terminal(
    first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    options: list[Any] = []

    def terminal(**given: Any) -> Terminal:
        options.append(given)
        return Terminal(file=shown, force_terminal=True, width=140, color_system=None)

    monkeypatch.setattr(scored_parts, "Terminal", terminal)
    moments = iter((100.0, 110.0))
    monkeypatch.setattr(scored_parts, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    write_part(tmp_path, {"old": 1.0}, Throughput())
    parts = ScoredParts(tmp_path, lambda answers: {"t0": 0.5}, 5, lambda: None)
    trainer: Any = SimpleNamespace(is_global_zero=first)
    parts.on_predict_start(trainer, None)  # type: ignore[arg-type]
    progress = parts._progress
    assert progress.live.is_started == first
    parts.on_predict_batch_end(trainer, None, None, Answers([make_transition()], [["a"]], 1000, 0.5), 0)  # type: ignore[arg-type]
    parts.on_predict_end(trainer, None)  # type: ignore[arg-type]
    assert not progress.live.is_started
    kinds = [type(column).__name__ for column in progress.columns]
    assert kinds == ["TextColumn", "BarColumn", "MofNCompleteColumn", "TimeRemainingColumn", "TextColumn"]
    (task,) = progress.tasks
    words = [str(progress.columns[place].render(task)) for place in (0, 2, 4)]  # type: ignore[union-attr]
    assert words == ["predicting with the filter's copy", "2/5", "100 tokens/s"]
    assert read_parts(tmp_path)[1] == Throughput(1000, 10.0, 0.5)
    assert ("predicting with the filter's copy" in shown.getvalue()) == first
    assert options == [{"stderr": True}]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        parts._scorer.submit(print)


def test_the_bar_ends_with_an_error(tmp_path: Path) -> None:
    parts = ScoredParts(tmp_path, lambda answers: {}, 1, lambda: None)
    trainer: Any = SimpleNamespace(is_global_zero=True)
    parts.on_predict_start(trainer, None)  # type: ignore[arg-type]
    parts.on_exception(trainer, None, OSError())  # type: ignore[arg-type]
    assert not parts._progress.live.is_started
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        parts._scorer.submit(print)


def test_the_copy_is_trained_once_and_predicts_with_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []

    class Trainer:
        def __init__(self, trainer: Any, callbacks: list[L.Callback]) -> None:
            assert trainer is main
            self.kinds = [type(callback) for callback in callbacks]

        def fit(self, copy: Any, data: Any) -> None:
            events.append(("fit", copy, data, self.kinds))

        def predict(self, copy: Any, data: Any, return_predictions: bool) -> None:
            assert not return_predictions  # they would all be kept in memory
            events.append(("predict", copy, data, self.kinds))

    def export(copy: Any, folder: Path, probe_ids: list[int]) -> None:
        events.append(("export", copy, probe_ids))
        folder.mkdir()

    monkeypatch.setattr(easy_sample_copy, "preliminary_trainer", Trainer)
    monkeypatch.setattr(easy_sample_copy, "supervised_copy", lambda *arguments: arguments)
    monkeypatch.setattr(easy_sample_copy, "write_export", export)
    barriers: list[None] = []
    monkeypatch.setattr(parallel, "gather", barriers.append)
    main: Any = SimpleNamespace(is_global_zero=True)
    model: Any = SimpleNamespace(init_from="start", lora="lora")
    generator = HFGenerator("name")
    generator._attached = True
    data: Any = SimpleNamespace(seed=3, generator=generator, probe_ids=lambda: [1, 2])
    parts = ScoredParts(tmp_path / "deep" / "work", lambda answers: {}, 1, lambda: None)
    for _ in range(2):
        predict_with_copy(main, model, data, 0.5, parts)
    learns, weights = (model, 0.5, "start", "lora"), str(tmp_path / "deep" / "work" / "copy")
    predicts = ("predict", (model, 0.5, weights), data, [WeightSync, RolloutProgressBar, ScoredParts])
    assert events == [
        ("fit", learns, data, [RewardLogger, RolloutProgressBar]), ("export", learns, [1, 2]), predicts, predicts,
    ]  # fmt: skip
    assert barriers == [None] * 2
    assert not generator._attached  # the copy would stay in memory
    (
        tmp_path / "deep" / "work" / "copy"
    ).rmdir()  # as where the filter was killed before the copy was written
    predict_with_copy(main, model, data, 0.5, parts)
    assert [event[0] for event in events[4:]] == ["fit", "export", "predict"]


def test_all_ranks_export_the_copy_and_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, barriers, copied = Recorder(), Recorder(), Recorder("copy")
    trainer = SimpleNamespace(fit=Recorder(), predict=Recorder())
    monkeypatch.setattr(easy_sample_copy, "preliminary_trainer", lambda *_: trainer)
    monkeypatch.setattr(easy_sample_copy, "supervised_copy", copied)
    monkeypatch.setattr(easy_sample_copy, "write_export", export)
    monkeypatch.setattr(parallel, "gather", barriers)
    main: Any = SimpleNamespace(is_global_zero=False)
    model: Any = SimpleNamespace(init_from=None, lora=None)
    data: Any = SimpleNamespace(seed=31, generator=HFGenerator("name"), probe_ids=lambda: [1, 2])
    state = torch.get_rng_state()
    predict_with_copy(main, model, data, 0.5, ScoredParts(tmp_path / "w", lambda _: {}, 1, lambda: None))
    assert torch.initial_seed() == 31  # of the copy's adapters
    torch.set_rng_state(state)
    assert export.calls == [("copy", tmp_path / "w" / "copy", [1, 2])]  # its weights may be spread over them
    assert len(barriers.calls) == 1
    assert trainer.fit.calls == [("copy", data)]


def test_parts_of_other_settings_lie_in_another_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed filter left is of its settings alone, and the decision is none of them."""
    folders: list[Path] = []

    def stop(trainer: Any, model: Any, data: Any, learning_rate: float, parts: ScoredParts) -> None:
        folders.append(parts.folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(easy_sample_filter, "predict_with_copy", stop)
    for settings in ({"seed": 1}, {"seed": 1, "keep_probability": 0.4}, {"seed": 2}):
        with pytest.raises(KeyboardInterrupt):
            make_filter(**settings).prepare_run(
                make_trainer(), WorldModelGRPO(model=str(tiny_model)), make_data(tmp_path)
            )
    assert folders[0] == folders[1] != folders[2]


def test_a_part_says_what_it_is_and_how_fast(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four transitions in two parts; the second is of a rank that prints nothing, a third has no transition."""
    beats: list[int] = []
    folder = tmp_path / "deep" / "er"
    write_part(folder, {"old": 1.0}, Throughput())
    parts = ScoredParts(
        folder, lambda a: {t.transition_id: 0.5 for t in a.transitions}, 5, lambda: beats.append(1)
    )
    first, other = (SimpleNamespace(is_global_zero=zero) for zero in (True, False))
    parts.on_predict_start(first, None)  # type: ignore[arg-type]
    parts._mark -= 2  # as if it had taken two seconds more
    for number, trainer in ((0, first), (1, other)):
        batch = Answers(
            [make_transition(2 * number), make_transition(2 * number + 1)], [["a"], ["b"]], 100, 0.5
        )
        parts.on_predict_batch_end(trainer, None, None, batch, number)  # type: ignore[arg-type]
    parts.on_predict_batch_end(first, None, None, Answers([], [], 0, 0.0), 2)  # type: ignore[arg-type]
    parts.on_predict_end(first, None)  # type: ignore[arg-type]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("easy-sample filter 3/5  ")
    assert 20 <= float(line.removeprefix("easy-sample filter 3/5  ").removesuffix(" tokens/s")) <= 50
    (task,) = parts._progress.tasks
    assert (task.total, task.completed) == (5, 5)
    assert task.description.endswith(" tokens/s")
    assert len(beats) == 3
    rewards, throughput = read_parts(folder)
    assert rewards == {"old": 1.0, "t0": 0.5, "t1": 0.5, "t2": 0.5, "t3": 0.5}
    assert (throughput.num_tokens, throughput.generate_seconds) == (200, 1.0)
    assert 2 <= throughput.seconds < 10
    written = [json.loads(file.read_text()) for file in folder.glob("*.json")]
    assert len(written) == len(list(folder.iterdir())) == 3
    assert all(one.keys() == {"mean_rewards", "throughput"} for one in written)


def test_sums_and_shares_of_throughput() -> None:
    total = Throughput(1, 2.0, 0.5) + Throughput(10, 20.0, 5.0)
    assert total == Throughput(11, 22.0, 5.5)
    assert (total.tokens_per_s, total.generator_share) == (0.5, 0.25)
    assert (Throughput(5).tokens_per_s, Throughput().generator_share) == (0.0, 0.0)


def test_loggers_get_the_numbers_at_the_start() -> None:
    marks = Marks(0.75, frozenset("abc"), frozenset("cdef"))
    metrics = filter_metrics(marks, 6, Throughput(100, 4.0, 1.0))
    assert metrics == {
        "filter/judged": 6.0, "filter/easy": 3.0, "filter/easy_kept": 1.0, "filter/tau_easy": 0.75,
        "filter/generator_share_of_time": 0.25, "throughput/filter_tokens_per_s": 25.0,
    }  # fmt: skip
    got: list[Any] = []
    logger: Any = SimpleNamespace(log_metrics=lambda numbers, step: got.append((numbers, step)))
    log_filter([logger, logger], metrics, {"a": 0.5})
    assert got == [(metrics, 0)] * 2


def test_rewards_of_the_filter_s_own_are_taken_as_they_are(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def score(reward: Any, tau_d: float | None, transitions: Any, predictions: Any) -> dict[str, float]:
        asked.append((reward, tau_d))
        return mean_rewards(reward, tau_d, transitions, predictions)

    predicts = Predicts(monkeypatch)
    monkeypatch.setattr(easy_sample_filter, "mean_rewards", score)
    for own in (None, make_data(tmp_path).need_predictions().need_reward()):
        data = make_data(tmp_path)
        make_filter(reward=own, tau_d=0.2, tau_easy=0.4).prepare_run(
            make_trainer(), WorldModelGRPO(model=str(tiny_model)), data
        )
        expected = (data.need_predictions().reward, 0.2) if own is None else (own, None)
        assert asked[-1] == expected
    assert len(predicts.calls) == 2


def test_nothing_easy_is_said_with_the_histogram(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Predicts(monkeypatch)
    with pytest.raises(ValueError, match=r"no one of 32 .* lower EasySampleFilter's tau_easy"):
        make_filter(tau_easy=0.6).prepare_run(
            make_trainer(), WorldModelGRPO(model=str(tiny_model)), make_data(tmp_path)
        )
    lines = capsys.readouterr().err.splitlines()
    (place,) = (
        number for number, line in enumerate(lines) if line == "mean rewards of the training transitions:"
    )
    assert [line.split()[-1] for line in lines[place + 1 : place + 11]] == ["16", *"0000", "16", *"0000"]


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.3, 2), (0.5, 2), (0.7, 4), (1.0, 5)])
def test_the_share_that_is_taught_is_rounded_and_never_empty(share: float, count: int) -> None:
    world = [make_transition(number) for number in range(5)]
    source = SimpleNamespace(train=[], whole_validation_split=lambda: world)
    data: Any = SimpleNamespace(prediction_source=source)
    taught, judged = make_filter(train_on="validation", train_share=share)._choose(data)
    assert (len(taught), judged) == (count, [])
