"""A run that somebody sent: hostile text in every column and every name, and every screen over it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rwml_tui.app import Dashboard
from rwml_tui.widgets.line import Line
from rwml_tui.widgets.run_bar import RunBar
from textual.pilot import Pilot
from textual.widgets import TabbedContent

from rwml_lightning.schema import Episode, Group, Turn
from rwml_lightning.trace import GroupQuery, TraceError, TraceReader, TraceWriter
from rwml_lightning.trace.tables import storable
from support.dashboard import SIZES, drive, idle, make_group, press, put_in_place, shown
from support.hostile import HOSTILE, assert_harmless

LONG = HOSTILE * 700  # a hundred thousand characters
NUMBERS_AS_JSON = {("groups", "rewards")}
KEYS = (
    "n t n", "slash l e f t enter", "s s", "o down escape", "c down", "escape e escape", "v escape", "y", "2 l m", "3 down t",
    "1 comma comma full_stop f", "question_mark", "question_mark", "w", "y",
)  # fmt: skip
"""What is pressed to see every screen, one after another."""


def hostile_group(text: str, step: int) -> Group:
    group = make_group(step, text, (text, None, ""))
    turn = Turn(text, text, False, 1.0, text)
    members = tuple(
        replace(p, text=text, thinking=text, score=replace(p.score, parts={text: 0.5}))
        for p in group.predictions
    )
    transition = replace(
        group.transition,
        **dict.fromkeys(
            ("transition_id", "environment", "game", "task", "observation", "next_state", "kind"), text
        ),
        history=(turn, turn),
        split=text,  # type: ignore[arg-type]
    )
    return replace(group, transition=transition, predictions=members, prompt=text)


def write_run(folder: Path, text: str) -> Path:
    """A run store in which all is text of somebody's."""
    name = text.replace("\ud800", "")  # stages, metrics and evaluations are named by code
    turns = (Turn(text, text, True, 0.5, text), Turn(text, text, False, 0.0, text))
    episode = Episode(text, text, text, text, 1, turns, text, True, kind=text)
    with TraceWriter(folder / "trace.db") as writer:
        writer.start_stage(name, 9, text)
        writer.start_stage("wm_grpo", 9, text)
        for step in range(2):
            metrics = {name: 0.5, "wm/reward": 0.5 + step, "wm/similarity": 0.1}
            writer.write_step(name, step, metrics, [hostile_group(text, step)])
            writer.write_step("wm_grpo", step, metrics, [hostile_group(text, step)])
        writer.write_evaluation(name, 1, {text: text}, [hostile_group(text, 1)], name=name)
        writer.write_episodes(name, 1, [episode])
    with TraceReader(folder / "trace.db") as reader:
        reader.send_command("pause")
    db = sqlite3.connect(folder / "trace.db")
    with db:
        stored = storable(text)
        db.execute("UPDATE run SET status = ?, detail = ?", (stored, stored))
        db.execute("UPDATE control SET command = ?, answer = ?, acknowledged = 1.0", (stored, stored))
        db.execute("UPDATE groups SET source = ? WHERE source = 'train'", (storable(f"{text}2"),))
        db.execute("UPDATE predictions SET finish_reason = ?", (stored,))
        db.execute("UPDATE episodes SET source = ?", (stored,))
    db.close()
    return folder


def columns(declared: str | None = None) -> list[tuple[str, str]]:
    """Columns of a run store, or those that are declared to hold one type."""
    db = sqlite3.connect(":memory:")
    from rwml_lightning.trace.tables import create_tables

    create_tables(db)
    tables = [
        name
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        if not name.startswith(("group_search", "sqlite_"))
    ]
    return [
        (table, row[1])
        for table in tables
        for row in db.execute(f"PRAGMA table_info({table})")
        if declared in (None, row[2])
    ]


def folder_name(text: str) -> str:
    """A name that a file system takes; it may hold bytes that are no text."""
    return os.fsdecode(os.fsencode(re.sub(r"[/\x00\ud800]", "", text))[:200] + b"\xff\xfe")


def assert_nothing_was_obeyed(app: Dashboard) -> None:
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            assert_harmless(segment.text)
            if segment.style is not None:
                assert not segment.style.link
                assert "app.quit" not in str(segment.style.meta.get("@click", ""))
    assert app.is_running


def test_the_run_is_hostile_in_every_text_column(tmp_path: Path) -> None:
    db = sqlite3.connect(write_run(tmp_path, HOSTILE) / "trace.db")
    db.text_factory = bytes
    texts = set(columns("TEXT"))
    assert len(texts) > 30
    assert texts >= NUMBERS_AS_JSON
    for table, column in texts - NUMBERS_AS_JSON:
        stored = [value for (value,) in db.execute(f"SELECT {column} FROM {table}") if value is not None]
        assert any(b"]52;c;" in value for value in stored), (table, column)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        pytest.param(SIZES[0], HOSTILE, id="small"),
        pytest.param(SIZES[1], HOSTILE, id="large"),
        pytest.param(SIZES[1], LONG, id="long", marks=pytest.mark.slow),
    ],
)
def test_every_screen_shows_hostile_text_and_obeys_none(
    size: tuple[int, int], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / folder_name(text), text)
    other = write_run(tmp_path / f"other{folder_name(text)}", text)
    answer_with(text, run, tmp_path, monkeypatch)
    named = text.replace("\ud800", "")
    config = {"data": {named: {"id": named}}}  # shown before model and environment are started
    (run / "config.yaml").write_text(json.dumps(config))
    seen = ""

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        nonlocal seen
        for keys in KEYS:
            for key in keys.split():
                await press(app, pilot, key)
                assert_nothing_was_obeyed(app)
                seen += shown(app)
        app.screen.query_one("#admissible").focus()  # what if, with an action that the environment names
        seen += await press(app, pilot, "down", "enter")
        assert_nothing_was_obeyed(app)
        assert_harmless(app.screen.query_one(Line).value)
        seen += await press(app, pilot, "g", "g")  # what if, with an error
        assert_nothing_was_obeyed(app)
        assert_harmless(app.clipboard)

    drive(run, test, size, limit=280, others=[other])
    for words in ("\\x1b]52;c;", "not answered: ", "predicted 1/", "heard: "):
        assert words in seen
    assert json.loads((tmp_path / "asked.json").read_text()) == text  # as the environment named it


def answer_with(text: str, run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that answers what-if questions with the text in every place, and then with an error."""
    with TraceReader(run / "trace.db") as reader:
        detail = reader.group(reader.group_ids()[0])
        assert detail is not None
        predictions = [asdict(one) for one in reader.predictions(detail.summary.id)]
    scene: dict[str, Any] = {
        "place": {"game": text, "seed": 1, "actions": []}, "task": text, "over": False, "turns": [asdict(Turn(text, text))],
        "observation": text, "admissible": [text, text, f"{text}2", "[/]"],
    }  # fmt: skip
    answered = {**scene, "transition": asdict(detail.transition), "predictions": predictions}
    (folder / "answers.json").write_text(json.dumps([scene, answered, {"error": text}, {"error": text}]))
    code = """
import json, pathlib, sys
answers = json.loads(pathlib.Path("answers.json").read_text())
print(json.dumps({"status": answers[2]["error"]}), flush=True)
print(json.dumps({"ready": answers[2]["error"]}), flush=True)
for line, answer in zip(sys.stdin, answers):
    question = json.loads(line)
    if "action" in question:
        pathlib.Path("asked.json").write_text(json.dumps(question["action"]))
    print(json.dumps({**answer, "id": question["id"]}), flush=True)
sys.stdin.read()
"""
    put_in_place(code, folder, monkeypatch)


READS: dict[str, Callable[[TraceReader], object]] = {
    "run": lambda reader: (reader.run(), reader.run().heartbeat + 1.0, reader.run().status + ""),
    "stages": lambda reader: [reader.steps(stage.stage + "") for stage in reader.stages()],
    "latest": lambda reader: reader.latest_step(),
    "metrics": lambda reader: [sum(v + s for s, v in c) for stage in reader.stages() for c in reader.metrics(stage.stage).values()],
    "groups": lambda reader: [sum(g.rewards) + g.step + len(g.kind + g.task) for g in reader.groups()],
    "group": lambda reader: [reader.group(one) for one in reader.group_ids()],
    "predictions": lambda reader: [p.reward + sum(p.parts.values()) + len(p.text) for g in reader.group_ids() for p in reader.predictions(g)],
    "found": lambda reader: reader.groups(GroupQuery(search="mug", order_by="task")),
    "episodes": lambda reader: [e.step + len(e.kind) for e in reader.episodes_by_id(reader.episode_ids())],
    "episode": lambda reader: [reader.episode(one) for one in reader.episode_ids()],
    "evaluations": lambda reader: reader.evaluations(),
    "commands": lambda reader: [c.time + len(c.command) for c in reader.commands()],
}  # fmt: skip
VALUES = {
    "text": HOSTILE.replace("\ud800", ""),
    "bytes": b"\xff\xfe\x00",
    "JSON of another shape": '[["[/]", {}], [1]]',
    "deep JSON": "[" * 100_000,
    "large number in JSON": "[1e999, " + "9" * 400 + "]",
    "object": '{"a": "b"}',
    "number": 7,
    "fraction": 0.5,
}


def problem(read: Callable[[TraceReader], object], reader: TraceReader) -> str | None:
    """What is wrong with the store, where it cannot be read."""
    try:
        read(reader)
    except TraceError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("table", "column"), columns(), ids=".".join)
def test_whatever_a_column_holds_is_read_or_is_one_line(table: str, column: str, tmp_path: Path) -> None:
    write_run(tmp_path, "plain")
    for value in (*VALUES.values(), "bytes as text"):
        path = tmp_path / "changed.db"
        path.write_bytes((tmp_path / "trace.db").read_bytes())
        db = sqlite3.connect(path)
        db.execute("PRAGMA ignore_check_constraints = ON")
        expression = "CAST(x'ff1b5b' AS TEXT)" if value == "bytes as text" else "?"
        with suppress(sqlite3.IntegrityError), db:  # a key, or a row's number
            db.execute(f"UPDATE {table} SET {column} = {expression}", () if expression != "?" else (value,))
        db.close()
        with TraceReader(path) as reader:
            for read in READS.values():
                told = problem(read, reader)
                assert told is None or (told.startswith(str(path)) and "\n" not in told)


@pytest.mark.heavy
@pytest.mark.parametrize("column", ["groups.rewards", "texts.body", "metrics.value"])
def test_a_damaged_run_is_said_in_the_bar(column: str, tmp_path: Path) -> None:
    write_run(tmp_path, "plain")
    table, _, name = column.partition(".")
    db = sqlite3.connect(tmp_path / "trace.db")
    with db:
        db.execute(f"UPDATE {table} SET {name} = '[/]' || {'rowid' if name == 'body' else 0}")
    db.close()
    told = []

    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        for key in [
            "n",
            "o",
            "escape",
            "v",
            "escape",
            "y",
            "c",
            "escape",
            "comma",
            "comma",
            "full_stop",
            "space",
            "2",
            "l",
            "m",
            "3",
            "down",
            "t",
            "w",
            "escape",
            "1",
            "right_square_bracket",
        ]:
            await press(app, pilot, key)
            assert_nothing_was_obeyed(app)
            told.append(str(app.screen_stack[0].query_one(RunBar).render()))

    drive(tmp_path, test, (80, 24), limit=280)
    assert any("was not written by a trainer" in one for one in told), told[-1]


@pytest.mark.heavy
def test_what_is_typed_or_pasted_stays_text(run: Path) -> None:
    async def test(app: Dashboard, pilot: Pilot[None]) -> None:
        await press(app, pilot, "slash")
        line = app.query_one("#find", Line)
        line.value = f"step>[/] {HOSTILE}"
        await idle(app, pilot)
        assert_nothing_was_obeyed(app)
        assert_harmless(line.value)
        assert app.query_one(TabbedContent).active == "predictions"

    drive(run, test)
