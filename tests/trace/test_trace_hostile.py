"""Killed writers, readers beside writers, files that are no run store, and texts that no one expects."""

from __future__ import annotations

import os
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwml_lightning.schema import Episode, Group
from rwml_lightning.trace import GroupQuery, TraceError, TraceReader, TraceWriter, newest_run, trace_path
from rwml_lightning.trace.tables import SCHEMA_VERSION, storable

MakeGroup = Callable[..., Group]

ENDLESS_WRITER = """
import sys
from rwml_lightning.schema import Completion, Group, Prediction, Score, Transition
from rwml_lightning.trace import TraceWriter

members = tuple(
    Prediction(Completion((1,), (0.0,), "stop", 0), "x" * 20000, "", "y", Score(1.0, 0.5, True), 0.0, member)
    for member in range(8)
)
groups = [
    Group(Transition(f"t{i}", "e", "g", "t", (), "o", "a", "s"), (1,), "p", members) for i in range(8)
]
with TraceWriter(sys.argv[1]) as writer:
    writer.start_stage("wm_grpo", 10**9, "")
    for step in range(10**9):
        writer.write_step("wm_grpo", step, {"wm/reward": step}, groups)
        print(step, flush=True)
"""


def test_kill_in_mid_write_loses_nothing_committed(path: Path, make_group: MakeGroup) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS_WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        ready, _, _ = select.select([child.stdout], [], [], 60)
        assert ready, "the writer wrote nothing"
        committed = 0
        while committed < 5:
            committed = int(child.stdout.readline())
    finally:
        os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate(timeout=30)
    told = [int(line) for line in rest.split("\n")[:-1]]  # what it said between the last look and the kill
    committed = max([committed, *told])
    with TraceReader(path) as reader:
        steps = [step.step for step in reader.steps("wm_grpo")]
        assert steps == list(range(len(steps)))
        assert steps[-1] >= committed
        assert reader.count_groups() == 8 * len(steps)
        assert [value for _, value in reader.metrics("wm_grpo")["wm/reward"]] == steps
        assert all(len(reader.predictions(row.id)) == 8 for row in reader.groups(limit=20))
        assert reader._rows("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        with TraceWriter(path) as writer:
            writer.write_step("wm_grpo", len(steps), {}, [make_group()])
        assert reader.groups(limit=1)[0].step == len(steps)


def test_a_reader_sees_whole_steps_while_another_thread_writes(path: Path, make_group: MakeGroup) -> None:
    num_steps = 60

    def write() -> None:
        with TraceWriter(path) as writer:
            writer.start_stage("wm_grpo", num_steps, "")
            started.set()
            for step in range(num_steps):
                writer.write_step("wm_grpo", step, {"a": step, "b": step}, [make_group()] * 4)

    started = threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    assert started.wait(30)
    seen, versions = set(), set()
    with TraceReader(path) as reader:
        while thread.is_alive():
            versions.add(reader.data_version())
            count = reader.count_groups()
            assert count % 4 == 0
            seen.add(count)
            reader.groups(GroupQuery(order_by="mean_reward"), limit=5)
        thread.join()
        assert reader.count_groups() == 4 * num_steps
    assert len(seen) > 1
    assert len(versions) > 1


def test_an_interrupted_step_leaves_no_trace(
    writer: TraceWriter, reader: TraceReader, make_group: MakeGroup
) -> None:
    writer.write_step("wm_grpo", 1, {"wm/reward": 1.0}, [make_group("first")])

    def broken() -> object:
        yield make_group("second")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write_step("wm_grpo", 1, {"wm/reward": 9.0}, broken())  # type: ignore[arg-type]
    assert [row.transition_id for row in reader.groups()] == ["first"]
    writer.write_step("wm_grpo", 2, {"wm/reward": 2.0})
    assert reader.metrics("wm_grpo") == {"wm/reward": [(1, 1.0), (2, 2.0)]}


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")


def _version(number: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        TraceWriter(path).close()
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version = {number}")

    return make


def _torn(path: Path) -> None:
    TraceWriter(path).close()
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)


FILES = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty, no run was recorded"),
    "text": (lambda path: path.write_text("step,reward\n" * 200), "damaged or is not a run store"),
    "foreign": (_foreign, "not a run store"),
    "newer": (_version(SCHEMA_VERSION + 1), "newer rwml-lightning"),
    "older": (_version(SCHEMA_VERSION - 1), "older rwml-lightning"),
    "torn": (_torn, "damaged or is not a run store"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_reader_says_what_is_wrong_with_a_file_and_leaves_it(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    path = tmp_path / "trace.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(TraceError, match=message) as caught:
        TraceReader(path)
    assert "trace.db" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "empty"])
def test_a_writer_leaves_a_strange_file_alone(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    path = tmp_path / "trace.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(TraceError, match=message):
        TraceWriter(path)
    assert path.read_bytes() == before


def test_a_writer_begins_in_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "trace.db").touch()
    TraceWriter(tmp_path / "trace.db").close()
    assert TraceReader(tmp_path / "trace.db").run().status == "running"


def test_damage_met_later_is_told_in_one_line(path: Path, make_group: MakeGroup) -> None:
    with TraceWriter(path) as writer:
        for step in range(50):
            writer.write_step("wm_grpo", step, {}, [make_group(f"{step} {i}") for i in range(8)])
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half:] = os.urandom(len(data) - half)
    path.write_bytes(data)
    with TraceReader(path) as reader, pytest.raises(TraceError, match=r"trace\.db: cannot use"):
        reader.groups(GroupQuery(order_by="action"))


def test_a_reader_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        TraceReader(tmp_path / "trace.db")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_opens_in_a_read_only_folder(make_group: MakeGroup) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.db"
        with TraceWriter(path) as writer:
            writer.write_step("wm_grpo", 1, {}, [make_group()])
        os.chmod(folder, 0o555)
        child = os.fork()
        if child == 0:  # root may write everywhere, so somebody else has to look
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                with TraceReader(path) as reader:
                    status = 0 if reader.count_groups() == 1 and os.listdir(folder) == ["trace.db"] else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        os.chmod(folder, 0o755)
    assert os.waitstatus_to_exitcode(status) == 0


HOSTILE = [
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "[bold red]markup[/] \\[not\\] {braces} %s",
    "lone \ud800 surrogate \udfff",
    "nul \x00 inside",
    "\u202eright to left\u202c שלום 👩‍🔬 ﷽",
    "line\r\nline\rline\u2028line",
    "x" * 100_000,
    "'); DROP TABLE groups; --",
    "",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_comes_back_as_it_was(
    text: str, writer: TraceWriter, reader: TraceReader, make_group: MakeGroup
) -> None:
    group = make_group(name=text, action=text, real=text, predicted=text, kind=text)
    members = tuple(replace(member, text=text, thinking=text) for member in group.predictions)
    group = replace(group, prompt=text, predictions=members)
    writer.write_step("wm_grpo", 1, {}, [group])
    writer.set_status("failed", text)
    (summary,) = reader.groups(GroupQuery(order_by="action"))
    detail = reader.group(summary.id)
    assert detail is not None
    assert detail.transition == group.transition
    assert detail.prompt == text
    (first, _) = reader.predictions(summary.id)
    assert (first.text, first.thinking, first.next_state) == (text, text, text)
    assert reader.run().detail == text
    assert [row.id for row in reader.same_transition(text)] == [summary.id]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_any_stage_metric_and_evaluation_may_be_recorded(
    name: str, path: Path, make_group: MakeGroup
) -> None:
    episode = Episode("e1", "alfworld", "game-1", "find a mug", 7, (), "You won!")
    with TraceWriter(path) as writer:
        writer.start_stage(name, 3, name)
        for _ in range(2):  # a repeated step replaces what was recorded before
            writer.write_step(name, 1, {name: 1.0, "other": 2.0}, [make_group()])
            writer.write_evaluation(name, 1, {name: name}, [make_group()], name, {f"val/{name}": 3.0})
            writer.write_episodes(name, 1, [episode], name)
    with TraceReader(path) as reader:
        assert [(stage.stage, stage.config) for stage in reader.stages()] == [(name, name)]
        assert [step.stage for step in reader.steps(name)] == [name]
        assert sorted(reader.metric_names(name)) == sorted([name, "other", f"val/{name}"])
        assert reader.metrics(name) == {name: [(1, 1.0)], "other": [(1, 2.0)], f"val/{name}": [(1, 3.0)]}
        assert [(one.name, one.result) for one in reader.evaluations(name)] == [(name, {name: name})]
        assert len(reader.groups(GroupQuery(stage=name, source=name))) == 1
        assert len(reader.episode_ids(name)) == 1
        step = reader.latest_step()
        assert step is not None
        assert min(reader.latest_ids(step)) > 0


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_storable_keeps_every_text(text: str) -> None:
    stored = storable(text)
    assert (stored.decode("utf-8", "surrogatepass") if isinstance(stored, bytes) else stored) == text


def test_the_newest_run_is_found(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no run under"):
        newest_run(tmp_path)
    for age, name in enumerate(("new", "old", "older")):
        TraceWriter(tmp_path / name / "trace.db").close()
        os.utime(tmp_path / name / "trace.db", (1e9 - age, 1e9 - age))
    (tmp_path / "no run").mkdir()
    assert newest_run(tmp_path) == tmp_path / "new"
    assert trace_path(root=tmp_path) == tmp_path / "new" / "trace.db"
    assert trace_path(tmp_path / "old") == trace_path(tmp_path / "old" / "trace.db")
    with pytest.raises(TraceError, match="no such file"):
        trace_path(tmp_path / "absent")


def test_the_store_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; import rwml_lightning.trace; "
        "print({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'})"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'rwml_lightning'}"


ROOT = Path(__file__).parents[2]
