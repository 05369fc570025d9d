"""The real lm-eval harness on the tiny model, with two small tasks of the test's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import rwml_callbacks.forgetting
import torch
from rwml_callbacks import Forgetting
from rwml_callbacks.forgetting import PAPER_TASKS, task_manager

from rwml_lightning.modules import LoRA
from support.callback_runs import Clean, records, run
from support.runs import rows_of

CHOICE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITING = """\
task: tiny_writing
tag: tiny_tag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/writing.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["</next_state>"], max_gen_toks: 24}}
metric_list: [{{metric: exact_match}}]
"""
GROUP = """\
group: tiny_group
task: [tiny_choice]
aggregate_metric_list: [{metric: acc}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of both tasks, and of two whose data is away; some samples are what the tiny model was taught."""
    pytest.importorskip("lm_eval", reason="pip install 'rwml-lightning[forgetting]'")
    folder = tmp_path_factory.mktemp("tasks")
    names = ("apple", "bowl", "desk", "lamp", "mug", "pan")
    answer = "<think></think>\n<next_state>You take the {}."
    choices = [
        {"question": f"take {n}", "choices": [answer.format(n), "zzz qqq xxx"], "answer": i % 2}
        for i, n in enumerate(names)
    ]
    writing = [{"question": f"push {n}", "answer": "<think></think>\n<next_state>It moves."} for n in names]
    for name, rows in (("choice", choices), ("writing", writing)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = CHOICE.format(folder=folder)
    (folder / "choice.yaml").write_text(choice)
    (folder / "writing.yaml").write_text(WRITING.format(folder=folder))
    (folder / "group.yaml").write_text(GROUP)
    (folder / "away.yaml").write_text(
        choice.replace("choice.jsonl", "no.jsonl").replace("tiny_choice", "away")
    )
    (folder / "hub.yaml").write_text("task: hub\ndataset_path: nobody/nothing\ntest_split: test\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        yield folder


@pytest.mark.heavy
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_the_harness_runs_on_the_trained_model(
    tiny_model: Path, tmp_path: Path, tasks: Path, lora: LoRA | None, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, plain = Clean(), tmp_path / "plain"
    forgetting = Forgetting(["tiny_choice", "tiny_writing"], limit=5, include_path=str(tasks))
    trainer = run(tmp_path, tiny_model, forgetting, clean, lora=lora)
    plain.mkdir()
    without = run(plain, tiny_model, lora=lora)
    ours, theirs = trainer.lightning_module.parameters(), without.lightning_module.parameters()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert clean.training == [True] * 4
    before, after = records(tmp_path, "forgetting")
    assert (before["step"], after["step"]) == (0, 4)
    assert before["metrics"]["forgetting/tiny_choice/acc"] == pytest.approx(
        3 / 5
    )  # the taught answer, always
    assert before["metrics"]["forgetting/tiny_writing/exact_match"] > 0
    assert before["details"]["tiny_choice"]["acc_stderr,none"] > 0
    assert (4, "forgetting/tiny_choice/acc_norm") in {
        (s, n) for _, s, n, _ in rows_of(tmp_path / "metrics.csv")
    }
    assert "tiny_writing/exact_match" in capsys.readouterr().out

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    harness = simple_evaluate(
        HFLM(str(tiny_model), device="cpu"),
        tasks=["tiny_choice", "tiny_writing"],
        task_manager=task_manager(str(tasks)),
        limit=5,
    )
    for task, metric in (
        ("tiny_choice", "acc"),
        ("tiny_choice", "acc_norm"),
        ("tiny_writing", "exact_match"),
    ):
        value = harness["results"][task][f"{metric},none"]
        assert before["metrics"][f"forgetting/{task}/{metric}"] == pytest.approx(value)


@pytest.mark.heavy
def test_what_cannot_be_had_is_named_and_left_out(
    tiny_model: Path, tmp_path: Path, tasks: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = ["livecodebench", "away", "hub", "tiny_choice"]
    with caplog.at_level(logging.WARNING, "rwml_callbacks"):
        run(tmp_path, tiny_model, Forgetting(chosen, limit=2, include_path=str(tasks)))
    said = [r.getMessage() for r in caplog.records if r.name == "rwml_callbacks.forgetting"]
    assert len(said) == 3  # once, not before and after
    for line, words in zip(
        said, ("lm-eval has no task with this name", "no.jsonl", "nobody/nothing"), strict=True
    ):
        assert words in line
        assert "\n" not in line
    assert [record["details"].keys() for record in records(tmp_path, "forgetting")] == [{"tiny_choice"}] * 2


@pytest.mark.heavy
def test_a_group_stands_for_its_members_and_a_tag_for_none(
    tiny_model: Path, tmp_path: Path, tasks: Path
) -> None:
    run(tmp_path, tiny_model, Forgetting(["tiny_group", "tiny_tag"], limit=2, include_path=str(tasks)))
    names = set(records(tmp_path, "forgetting")[0]["metrics"])
    assert names == {"forgetting/tiny_group/acc", "forgetting/tiny_writing/exact_match"}


@pytest.mark.heavy
def test_no_task_at_all_is_not_fatal(tiny_model: Path, tmp_path: Path, tasks: Path) -> None:
    run(tmp_path, tiny_model, Forgetting(["livecodebench"], include_path=str(tasks)))
    assert [record["metrics"] for record in records(tmp_path, "forgetting")] == [{}, {}]


def test_the_harness_has_the_benchmarks_of_the_paper_but_one(tasks: Path) -> None:
    known = task_manager(str(tasks)).task_index
    missing = [task for task in PAPER_TASKS if task not in known]
    assert missing == ["livecodebench"]


def test_without_the_harness_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwml_callbacks.forgetting, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rwml-lightning\[forgetting\]'"):
        Forgetting()


@pytest.mark.parametrize("name", ["limit", "batch_size"])
def test_bad_settings(name: str) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(ValueError, match=rf"Forgetting\.{name} is 0; it must be at least 1"):
        Forgetting(**{name: 0})  # type: ignore[arg-type]
