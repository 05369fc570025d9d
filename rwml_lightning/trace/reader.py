"""Read access to the run store, also while the trainer writes. Only a command to the trainer changes the file."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from rwml_lightning.schema import Episode, Transition, Turn
from rwml_lightning.trace.checked import (
    Record,
    check_columns,
    float_or_nan,
    parse_history,
    parse_json,
    to_floats,
    to_floats_by_name,
    to_record,
)
from rwml_lightning.trace.query import COLUMNS, JOIN_TASK, JOIN_TRANSITIONS, GroupQuery
from rwml_lightning.trace.records import (
    TRANSITION_COLUMNS,
    Command,
    CommandName,
    EpisodeSummary,
    Evaluation,
    GroupDetail,
    GroupSummary,
    PredictionRecord,
    RunInfo,
    StageInfo,
    Step,
)
from rwml_lightning.trace.tables import TraceError, as_text, check_version, named_errors, parameters, row_dict

_SUMMARY = ", ".join(["rewards", *(f"{expression} AS {name}" for name, expression in COLUMNS.items())])
_EPISODE = ", ".join(field.name for field in fields(EpisodeSummary))


def _summary(row: dict[str, Any]) -> GroupSummary:
    rewards = to_floats(parse_json(row["rewards"], "rewards"), "rewards")
    return to_record(GroupSummary, {**row, "rewards": rewards})


class TraceReader:
    """Reads a run's ``trace.db``. Each call sees one committed state. Use one reader per thread.

    Args:
        path: Database file.

    Raises:
        TraceError: The file does not exist, is not a run store, is damaged, or has another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise TraceError(f"{path}: no such file; name a run folder or its trace.db")
        with named_errors(self.path):
            self._db = self._connect()
        self._db.row_factory, self._db.text_factory = row_dict, as_text
        # In KiB; enough to sort a list of 100,000 groups again.
        self._db.execute("PRAGMA cache_size = -32768")

    def _connect(self) -> sqlite3.Connection:
        uri = self.path.resolve().as_uri()
        # A store without a write-ahead log in a read-only folder can only be opened as immutable.
        closed = not self.path.with_name(self.path.name + "-wal").exists()
        for options in ("mode=ro", "mode=ro&immutable=1"):
            db = sqlite3.connect(f"{uri}?{options}", uri=True, timeout=10, isolation_level=None)
            try:
                check_version(db, self.path)
                return db
            except sqlite3.OperationalError as error:
                db.close()
                if not closed or not re.search("unable to open|readonly", str(error)):
                    raise
            except BaseException:
                db.close()
                raise
        raise TraceError(f"{self.path}: cannot be opened; check the folder's permissions")

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def interrupt(self) -> None:
        """Interrupt the query of another thread, which then raises :class:`TraceError`."""
        with suppress(sqlite3.ProgrammingError):  # the database is already closed
            self._db.interrupt()

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        with named_errors(self.path):
            return self._db.execute(statement, parameters(values)).fetchall()

    def _records(self, kind: type[Record], rows: Iterable[dict[str, Any]]) -> list[Record]:
        with named_errors(self.path):
            return [to_record(kind, row) for row in rows]

    def _numbers(self, statement: str, values: Sequence[Any], *types: type | UnionType) -> list[Any]:
        """Query columns of numbers as tuples. For 100,000 rows, a dict per row would take most of the time."""
        cursor = self._db.cursor()
        cursor.row_factory = None
        with named_errors(self.path):
            return check_columns(cursor.execute(statement, parameters(values)), *types)

    def data_version(self) -> int:
        """Return a number that changes with every commit, as a cheap check for new data."""
        return self._rows("PRAGMA data_version")[0]["data_version"]

    def run(self) -> RunInfo:
        """Return the state of the run."""
        rows = self._records(RunInfo, self._rows("SELECT created, heartbeat, status, detail FROM run"))
        if not rows:
            raise TraceError(
                f"{self.path}: holds no run: the file is damaged or was not written by a trainer"
            )
        return rows[0]

    def stages(self) -> list[StageInfo]:
        """Return the stages in the order in which they started."""
        rows = self._rows(
            "SELECT s.*, max(step) AS last_step, max(time) AS last_time FROM stages AS s "
            "LEFT JOIN steps USING (stage) GROUP BY stage ORDER BY started"
        )
        return self._records(StageInfo, rows)

    def steps(self, stage: str, since_step: int = 0) -> list[Step]:
        """Return the recorded steps of a stage from ``since_step`` on."""
        rows = self._rows(
            "SELECT * FROM steps WHERE stage = ? AND step >= ? ORDER BY step", (stage, since_step)
        )
        return self._records(Step, rows)

    def latest_step(self) -> Step | None:
        """Return the step of any stage that was recorded last."""
        rows = self._rows("SELECT * FROM steps ORDER BY time DESC, step DESC LIMIT 1")
        return next(iter(self._records(Step, rows)), None)

    def metric_names(self, stage: str) -> list[str]:
        """Return the names of a stage's metrics."""
        # The query jumps from name to name in the primary key, so it does not read every value.
        rows = self._rows(
            "WITH RECURSIVE names(name) AS (SELECT min(name) FROM metrics WHERE stage = ?1 UNION ALL "
            "SELECT (SELECT min(name) FROM metrics WHERE stage = ?1 AND name > names.name) FROM names "
            "WHERE names.name IS NOT NULL) SELECT name FROM names WHERE name IS NOT NULL",
            (stage,),
        )
        return [row["name"] for row in rows]

    def metrics(self, stage: str, names: Iterable[str] | None = None) -> dict[str, list[tuple[int, float]]]:
        """Return the curves of a stage's metrics.

        Args:
            stage: Name of the stage.
            names: Names of the metrics; ``None`` selects all. A metric that was never recorded has an empty curve.

        Returns:
            (step, value) pairs of each metric by its name, in order of the step.
        """
        statement = "SELECT step, value FROM metrics WHERE stage = ? AND name = ? ORDER BY step"
        curves = {}
        for name in self.metric_names(stage) if names is None else names:
            rows = self._numbers(statement, (stage, name), int, int | float | None)
            curves[name] = [(step, float_or_nan(value)) for step, value in rows]
        return curves

    def count_groups(self, query: GroupQuery = GroupQuery()) -> int:  # noqa: B008 - frozen
        """Return the number of groups that match a query."""
        where, values = query.where()
        return self._rows(f"SELECT count(*) AS num_groups {where}", values)[0]["num_groups"]

    def group_ids(self, query: GroupQuery = GroupQuery(), limit: int = -1) -> array[int]:  # noqa: B008
        """Return the ids of a query's groups in its order. An id takes eight bytes, so any list fits in memory."""
        where, values = query.where()
        statement = f"SELECT groups.id {where} {query.order()} LIMIT ?"
        return array("q", (group_id for (group_id,) in self._numbers(statement, [*values, limit], int)))

    def groups_by_id(self, ids: Iterable[int]) -> list[GroupSummary]:
        """Return the groups with these ids in this order, except groups that were replaced meanwhile."""
        wanted = list(ids)
        rows = self._rows(
            f"SELECT {_SUMMARY} FROM groups {JOIN_TRANSITIONS} {JOIN_TASK} WHERE groups.id IN (SELECT value FROM json_each(?))",
            (json.dumps(wanted),),
        )
        with named_errors(self.path):
            found = {row["id"]: _summary(row) for row in rows}
        return [found[key] for key in wanted if key in found]

    def groups(self, query: GroupQuery = GroupQuery(), limit: int = 100) -> list[GroupSummary]:  # noqa: B008
        """Return the first groups that match a query."""
        return self.groups_by_id(self.group_ids(query, limit))

    def group(self, group_id: int) -> GroupDetail | None:
        """Return one group with its texts, or ``None`` if a repeated step has replaced it."""
        rows = self._rows(
            "SELECT task.body AS task, history.body AS history, observation.body AS observation, "
            "real.body AS next_state, prompt.body AS prompt FROM groups "
            "JOIN transitions AS t ON t.id = transition_key JOIN texts AS task ON task.id = t.task "
            "JOIN texts AS history ON history.id = t.history "
            "JOIN texts AS observation ON observation.id = t.observation "
            "JOIN texts AS real ON real.id = t.next_state JOIN texts AS prompt ON prompt.id = groups.prompt "
            "WHERE groups.id = ?",
            (group_id,),
        )
        summaries = self.groups_by_id([group_id])
        if not rows or not summaries:
            return None
        (row,), (summary,) = rows, summaries
        values = {name: row[name] for name in ("task", "observation", "next_state")}
        values |= {name: getattr(summary, name) for name in TRANSITION_COLUMNS}
        with named_errors(self.path):
            transition = to_record(Transition, values | {"history": parse_history(row["history"])})
            return to_record(
                GroupDetail, {"summary": summary, "transition": transition, "prompt": row["prompt"]}
            )

    def predictions(self, group_id: int) -> list[PredictionRecord]:
        """Return the predictions of a group in order."""
        rows = self._rows("SELECT * FROM predictions WHERE group_id = ? ORDER BY member", (group_id,))
        with named_errors(self.path):
            for row in rows:
                row["parts"] = to_floats_by_name(parse_json(row["parts"], "parts"), "parts")
                row["reward"], row["advantage"] = float_or_nan(row["reward"]), float_or_nan(row["advantage"])
        return self._records(PredictionRecord, rows)

    def same_transition(self, transition_id: str) -> list[GroupSummary]:
        """Return all groups of one transition in the order of their recording."""
        return self.groups_by_id(
            row["id"]
            for row in self._rows(
                "SELECT groups.id FROM transitions JOIN groups ON transition_key = transitions.id "
                "WHERE transition_id = ? ORDER BY groups.id",
                (transition_id,),
            )
        )

    def episode_ids(self, stage: str | None = None) -> array[int]:
        """Return the ids of the episodes, newest step first."""
        statement = "SELECT id FROM episodes WHERE ? IN (stage, '') ORDER BY step DESC, position"
        return array("q", (key for (key,) in self._numbers(statement, (stage or "",), int)))

    def episodes_by_id(self, ids: Iterable[int]) -> list[EpisodeSummary]:
        """Return the episodes with these ids in this order, except episodes that were replaced meanwhile."""
        wanted = list(ids)
        rows = self._rows(
            f"SELECT {_EPISODE} FROM episodes WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(wanted),),
        )
        for row in rows:
            row["episode_return"] = float_or_nan(row["episode_return"])
        found = {episode.id: episode for episode in self._records(EpisodeSummary, rows)}
        return [found[key] for key in wanted if key in found]

    def latest_ids(self, until: Step) -> tuple[int, int]:
        """Return the largest group id and the largest episode id recorded up to a step, 0 if there is none."""
        up_to_step = (
            "((stage = ?1 AND step <= ?2) OR stage IN "
            "(SELECT stage FROM stages WHERE started < (SELECT started FROM stages WHERE stage = ?1)))"
        )
        row = self._rows(
            f"SELECT (SELECT max(id) FROM groups WHERE {up_to_step}) AS last_group, "
            f"(SELECT max(id) FROM episodes WHERE {up_to_step}) AS last_episode",
            (until.stage, until.step),
        )[0]
        return row["last_group"] or 0, row["last_episode"] or 0

    def episode(self, key: int) -> Episode | None:
        """Return the episode with this :attr:`EpisodeSummary.id` and its turns, or ``None`` if it was replaced."""
        rows = self._rows(
            "SELECT episode_id, environment, game, kind, seed, success, truncated, task.body AS task, "
            "final.body AS final_observation FROM episodes JOIN texts AS task ON task.id = episodes.task "
            "JOIN texts AS final ON final.id = episodes.final_observation WHERE episodes.id = ?",
            (key,),
        )
        if not rows:
            return None
        turns = self._rows(
            "SELECT body AS observation, action, valid, reward, thinking FROM turns "
            "JOIN texts ON texts.id = observation WHERE episode = ? ORDER BY position",
            (key,),
        )
        for turn in turns:
            turn["reward"] = float_or_nan(turn["reward"])
        (episode,) = self._records(Episode, [{**rows[0], "turns": tuple(self._records(Turn, turns))}])
        return episode

    def evaluations(self, stage: str | None = None) -> list[Evaluation]:
        """Return the held-out results in the order of their recording."""
        rows = self._rows("SELECT * FROM evaluations WHERE ? IN (stage, '') ORDER BY time", (stage or "",))
        with named_errors(self.path):
            results = [{**row, "result": parse_json(row["result"], "result")} for row in rows]
        return self._records(Evaluation, results)

    def commands(self, limit: int = 20) -> list[Command]:
        """Return the commands to the trainer with its answers, newest first."""
        return self._records(Command, self._rows("SELECT * FROM control ORDER BY id DESC LIMIT ?", (limit,)))

    def send_command(self, command: CommandName) -> int:
        """Send a command to the trainer. This is the only write of a reader.

        Returns:
            Id of the command. :meth:`commands` returns its answer.
        """
        if command not in get_args(CommandName):
            raise ValueError(f"no command {command!r}: known commands are {', '.join(get_args(CommandName))}")
        insert = "INSERT INTO control (time, command) VALUES (?, ?)"
        with named_errors(self.path):
            db = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=rw", uri=True, timeout=10)
            try:
                with db:
                    cursor = db.execute(insert, (time.time(), command))
            finally:
                db.close()
        assert cursor.lastrowid is not None
        return cursor.lastrowid
