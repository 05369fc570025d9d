"""What is written comes back, in the shape that a reader asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median

import pytest

from rwml_lightning.schema import Episode, Group, Turn
from rwml_lightning.trace import COLUMNS, Filter, GroupQuery, TraceReader, TraceWriter

MakeGroup = Callable[..., Group]


def test_a_group_comes_back_whole(writer: TraceWriter, reader: TraceReader, make_group: MakeGroup) -> None:
    group = make_group(rewards=(1.0, 0.0, 0.0, 1.0), step=3)
    writer.write_step("wm_grpo", 3, {"wm/reward": 0.5}, [group])
    (summary,) = reader.groups()
    assert (summary.step, summary.kind, summary.valid, summary.knowable) == (3, "navigation", True, False)
    assert summary.rewards == (1.0, 0.0, 0.0, 1.0)
    assert (summary.mean_reward, summary.best_similarity, summary.mean_similarity) == (0.5, 0.75, 0.5)
    assert (summary.zero_variance, summary.mean_tokens, summary.prompt_tokens) == (False, 3, 4)
    assert summary.policy_version == 3
    detail = reader.group(summary.id)
    assert detail is not None
    assert detail.transition == group.transition
    assert detail.prompt == group.prompt
    for record, prediction in zip(reader.predictions(summary.id), group.predictions, strict=True):
        assert (record.text, record.thinking, record.next_state) == (
            prediction.text,
            prediction.thinking,
            prediction.next_state,
        )
        assert (record.reward, record.similarity) == (prediction.score.reward, prediction.score.similarity)
        assert (record.advantage, record.member) == (prediction.advantage, prediction.member)
        assert record.parts == prediction.score.parts
        assert (record.tokens, record.finish_reason, record.policy_version) == (3, "stop", 3)


def test_stages_steps_and_metrics(writer: TraceWriter, reader: TraceReader) -> None:
    assert reader.latest_step() is None
    writer.write_step("wm_grpo", 1, {"wm/reward": 0.25, "train/kl": math.nan})
    writer.write_step("wm_grpo", 2, {"wm/reward": 0.5, "time/generate": math.inf})
    writer.start_stage("policy_grpo", 5, "seed: 2")
    writer.write_step("policy_grpo", 1, {"policy/success": 1})
    assert [(s.stage, s.total_steps, s.last_step) for s in reader.stages()] == [
        ("wm_grpo", 10, 2),
        ("policy_grpo", 5, 1),
    ]
    assert reader.metric_names("wm_grpo") == ["time/generate", "train/kl", "wm/reward"]
    assert reader.metrics("wm_grpo", ["wm/reward", "absent"]) == {
        "wm/reward": [(1, 0.25), (2, 0.5)],
        "absent": [],
    }
    assert reader.metrics("wm_grpo")["time/generate"] == [(2, math.inf)]
    ((step, value),) = reader.metrics("wm_grpo")["train/kl"]
    assert step == 1
    assert math.isnan(value)
    assert [step.step for step in reader.steps("wm_grpo")] == [1, 2]
    latest = reader.latest_step()
    assert latest is not None
    assert (latest.stage, latest.step) == ("policy_grpo", 1)


def test_a_repeated_step_replaces_what_it_was(
    writer: TraceWriter, reader: TraceReader, make_group: MakeGroup
) -> None:
    writer.write_step("wm_grpo", 1, {"old": 1.0}, [make_group("a", predicted="walrus"), make_group("b")])
    writer.write_evaluation("wm_grpo", 1, {"all": {"share": 0.5}}, [make_group("held out")])
    (old, *_) = reader.group_ids(GroupQuery(order_by="position", descending=False, source="train"))
    writer.write_step("wm_grpo", 1, {"new": 2.0}, [make_group("c")])
    assert reader.metrics("wm_grpo") == {"new": [(1, 2.0)]}
    assert [row.transition_id for row in reader.groups(GroupQuery(source="train"))] == ["c"]
    assert [row.transition_id for row in reader.groups(GroupQuery(source="held_out"))] == ["held out"]
    assert reader.group(old) is None
    assert reader.predictions(old) == []
    assert reader.groups(GroupQuery(search="walrus")) == []


def test_one_transition_over_training(
    writer: TraceWriter, reader: TraceReader, make_group: MakeGroup
) -> None:
    for step in range(3):
        writer.write_step("wm_grpo", step, {}, [make_group("same", step=step), make_group("other")])
    assert [row.step for row in reader.same_transition("same")] == [0, 1, 2]
    assert reader.same_transition("never") == []


def test_lists_are_sorted_filtered_and_paged(
    writer: TraceWriter, reader: TraceReader, make_group: MakeGroup
) -> None:
    groups = [
        make_group("none", rewards=()),
        make_group("nine", rewards=(9.0, 9.0), action="open fridge 1"),
        make_group("ten", rewards=(10.0, 10.0, 10.0), kind="state_change"),
        make_group("half", rewards=(1.0, 0.0)),
    ]
    writer.write_step("wm_grpo", 1, {}, groups)

    def names(**query: object) -> list[str]:
        return [row.transition_id for row in reader.groups(GroupQuery(**query))]  # type: ignore[arg-type]

    assert names() == ["half", "ten", "nine", "none"]
    assert names(order_by="mean_reward") == ["ten", "nine", "half", "none"]
    assert names(order_by="mean_reward", descending=False) == ["half", "nine", "ten", "none"]
    assert names(filters=(Filter("mean_reward", ">=", 9.5),)) == ["ten"]
    assert names(filters=(Filter("action", "contains", "FRIDGE"),)) == ["nine"]
    assert names(filters=(Filter("action", "contains", "%"),)) == []
    assert names(filters=(Filter("zero_variance", "=", 0), Filter("task", "contains", "mug"))) == ["half"]
    assert names(stage="wm_sft") == []
    best_first = GroupQuery(order_by="mean_reward")
    assert [row.transition_id for row in reader.groups(best_first, limit=2)] == ["ten", "nine"]
    assert reader.count_groups(GroupQuery(filters=(Filter("kind", "=", "navigation"),))) == 3


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_sorts_and_filters(
    column: str, writer: TraceWriter, reader: TraceReader, make_group: MakeGroup
) -> None:
    writer.write_step("wm_grpo", 1, {}, [make_group("a"), make_group("b", rewards=(0.0,), kind="x")])
    query = GroupQuery(order_by=column, filters=(Filter(column, "!=", "no such value"),))
    assert len(reader.group_ids(query)) == reader.count_groups(query) == 2


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("vase", ["a"]),  # predicted
        ("MUG", ["b", "a"]),  # real, whatever the case
        ("fridge", ["b"]),  # action
        ("mug fridge", ["b"]),
        ("mu", ["b", "a"]),  # the last word may be unfinished
        ("mu fridge", []),
        ('"mug" OR (', []),
        ("***", []),
        ("NEAR(mug, 2)", []),
        ("  ", ["b", "a"]),
        ("\ud800", []),
    ],
)
def test_search(
    search: str, found: list[str], writer: TraceWriter, reader: TraceReader, make_group: MakeGroup
) -> None:
    writer.write_step(
        "wm_grpo", 1, {}, [make_group("a"), make_group("b", action="open fridge 1", predicted=None)]
    )
    assert [row.transition_id for row in reader.groups(GroupQuery(search=search))] == found


def test_a_wrong_column_names_the_nearest(reader: TraceReader) -> None:
    with pytest.raises(ValueError, match="did you mean 'mean_reward'"):
        reader.groups(GroupQuery(order_by="mean_rewards"))
    with pytest.raises(ValueError, match="no operator"):
        reader.groups(GroupQuery(filters=(Filter("step", "; DROP", 1),)))  # type: ignore[arg-type]


def test_evaluations(writer: TraceWriter, reader: TraceReader) -> None:
    result = {"all": {"share": 0.25, "exact": 0.0}, "floors": {"copy": 0.2}}
    writer.write_evaluation("wm_grpo", 0, {"all": {"share": 0.0}}, metrics={"val/share": 0.0})
    writer.write_evaluation("wm_grpo", 5, {"all": {"share": 0.125}})
    writer.write_evaluation("wm_grpo", 5, result, metrics={"val/share": 0.5})
    assert reader.metrics("wm_grpo", ["val/share"]) == {"val/share": [(0, 0.0), (5, 0.5)]}
    assert [(e.step, e.name, e.result) for e in reader.evaluations("wm_grpo")] == [
        (0, "held_out", {"all": {"share": 0.0}}),
        (5, "held_out", result),
    ]
    assert len(reader.evaluations()) == 2
    assert reader.evaluations("wm_sft") == []


def test_episodes(writer: TraceWriter, reader: TraceReader) -> None:
    turns = (Turn("You see a desk.", "look", True, 0.0, "let me see"), Turn("A mug.", "tkae", False, -0.1))
    lost = Episode("e0", "alfworld", "g0", "find a mug", 7, turns, "Nothing happens.", None, truncated=True)
    won = Episode("e1", "alfworld", "g0", "find a mug", 8, turns[:1], "You won!", success=True)
    writer.write_episodes("policy_grpo", 1, [lost])
    writer.write_episodes("policy_grpo", 1, [lost, won])
    rows = reader.episodes_by_id(reader.episode_ids("policy_grpo"))
    assert [(r.episode_id, r.success, r.num_turns, r.episode_return) for r in rows] == [
        ("e0", None, 2, -0.1),
        ("e1", True, 1, 0.0),
    ]
    assert [reader.episode(row.id) for row in rows] == [lost, won]
    assert reader.episode(12345) is None


def test_status_and_heartbeat(writer: TraceWriter, reader: TraceReader) -> None:
    before = reader.run()
    assert (before.status, before.alive) == ("running", True)
    writer.heartbeat()
    assert reader.run().heartbeat > before.heartbeat
    writer.set_status("failed", "loss is not finite")
    after = reader.run()
    assert (after.status, after.detail, after.alive) == ("failed", "loss is not finite", False)


def test_a_store_is_continued(
    writer: TraceWriter, reader: TraceReader, make_group: MakeGroup, path: object
) -> None:
    writer.write_step("wm_grpo", 1, {"wm/reward": 1.0}, [make_group()])
    writer.set_status("failed", "killed")
    with TraceWriter(writer.path) as second:
        second.start_stage("wm_grpo", 20, "seed: 1")
        second.write_step("wm_grpo", 2, {"wm/reward": 2.0})
    (stage,) = reader.stages()
    assert (stage.total_steps, stage.last_step) == (20, 2)
    assert stage.resumed is not None
    assert stage.resumed > stage.started
    assert reader.run().status == "running"
    assert reader.metrics("wm_grpo") == {"wm/reward": [(1, 1.0), (2, 2.0)]}


def test_commands_are_heard_once_and_answered(writer: TraceWriter, reader: TraceReader) -> None:
    first, second = reader.send_command("checkpoint"), reader.send_command("stop")
    assert [(c.id, c.command) for c in writer.take_commands()] == [(first, "checkpoint"), (second, "stop")]
    writer.acknowledge(first, "saved step-4.ckpt")
    assert [c.id for c in writer.take_commands()] == [second]
    newest, oldest = reader.commands()
    assert (newest.acknowledged, newest.answer) == (None, None)
    assert oldest.acknowledged is not None
    assert oldest.answer == "saved step-4.ckpt"
    with pytest.raises(ValueError, match="no command 'explode'"):
        reader.send_command("explode")  # type: ignore[arg-type]


def test_a_command_to_a_dead_trainer_does_not_stop_the_next(writer: TraceWriter, reader: TraceReader) -> None:
    reader.send_command("stop")
    with TraceWriter(writer.path) as second:
        assert second.take_commands() == []
    assert "expired" in (reader.commands()[0].answer or "")


def test_texts_are_stored_once(writer: TraceWriter, reader: TraceReader, make_group: MakeGroup) -> None:
    for step in range(5):
        writer.write_step("wm_grpo", step, {}, [make_group(real="r" * 1000)])
    assert reader._rows("SELECT count(*) AS n FROM texts WHERE body LIKE 'rrr%'") == [{"n": 1}]
    assert reader._rows("SELECT count(*) AS n FROM transitions") == [{"n": 1}]


def test_a_step_costs_the_same_late_in_a_run(writer: TraceWriter, make_group: MakeGroup) -> None:
    def work(step: int) -> int:
        """Hundreds of SQLite instructions that one step takes."""
        counted = 0

        def count() -> int:
            nonlocal counted
            counted += 1
            return 0

        writer._db.set_progress_handler(count, 100)
        writer.write_step("wm_grpo", step, {f"metric {i}": 1.0 for i in range(10)}, [make_group(f"t{step}")])
        writer._db.set_progress_handler(None, 0)
        return counted

    steps = [work(step) for step in range(1, 401)]
    assert min(steps) > 0
    assert median(steps[-50:]) < 1.5 * median(steps[:50])
