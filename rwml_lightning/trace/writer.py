"""Write access to the run store. Each step is one transaction, so kill -9 loses nothing that was committed."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from statistics import fmean
from typing import Any

from rwml_lightning.printable import well_formed
from rwml_lightning.schema import Episode, Group, Prediction, Transition
from rwml_lightning.trace.records import TRANSITION_COLUMNS, Command, Status
from rwml_lightning.trace.tables import (
    TraceError,
    check_version,
    create_tables,
    has_tables,
    named_errors,
    parameters,
    row_dict,
)


def insert(db: sqlite3.Connection, table: str, row: Mapping[str, Any], or_replace: bool = False) -> int:
    """Insert one row, given as values by column name, and return its id."""
    verb = "INSERT OR REPLACE" if or_replace else "INSERT"
    statement = f"{verb} INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
    cursor = db.execute(statement, parameters(row.values()))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _attributes(record: object, *names: str) -> dict[str, Any]:
    """Return attributes of a record by name, for columns that are called like them."""
    return {name: getattr(record, name) for name in names}


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


class TraceWriter:
    """Writes a run's ``trace.db``. A run has one writer, which is used from one thread.

    An existing store is continued. Commands that were sent while no trainer was running are answered as expired.

    Args:
        path: Database file. Its folder is created.

    Raises:
        TraceError: The file is not a run store, is damaged, or has another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with named_errors(self.path):
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        if has_tables(self._db):
            check_version(self._db, self.path)
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise TraceError(
                f"{self.path}: this file system does not support a write-ahead log; keep runs on a local disk"
            )
        # In WAL mode, NORMAL is safe against a killed process. A power cut may lose the last steps, but not the file.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA journal_size_limit = 67108864")
        if not has_tables(self._db):
            create_tables(self._db)
        now = time.time()
        with self._transaction():
            self._db.execute(
                "INSERT INTO run VALUES (1, ?, ?, 'running', '') ON CONFLICT (id) DO UPDATE "
                "SET heartbeat = excluded.heartbeat, status = excluded.status, detail = excluded.detail",
                (now, now),
            )
            self._db.execute(
                "UPDATE control SET acknowledged = ?, answer = 'expired: the trainer had ended' "
                "WHERE acknowledged IS NULL",
                (now,),
            )

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The run keeps its last status."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[float]:
        """Commit all statements inside together or not at all. Update the heartbeat and yield its time."""
        with named_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                now = time.time()
                self._db.execute("UPDATE run SET heartbeat = ?", (now,))
                yield now
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # on a full disk, SQLite has already rolled back
                    self._db.execute("ROLLBACK")
                raise

    def start_stage(self, stage: str, total_steps: int, config_text: str) -> None:
        """Record the start of a stage (``wm_sft``, ``wm_grpo``, ``policy_grpo``), or its restart."""
        with self._transaction() as now:
            self._db.execute(
                "INSERT INTO stages VALUES (?, ?, ?, ?, NULL) ON CONFLICT (stage) DO UPDATE SET "
                "total_steps = excluded.total_steps, config = excluded.config, resumed = excluded.started",
                parameters((stage, total_steps, config_text, now)),
            )

    def write_step(
        self, stage: str, step: int, metrics: Mapping[str, float], groups: Iterable[Group] = ()
    ) -> None:
        """Record one optimizer step. An earlier record of the same step is replaced.

        Args:
            stage: Name given to :meth:`start_stage`.
            step: Optimizer step.
            metrics: Values by name, for example ``wm/reward``.
            groups: Groups that the step was trained on.
        """
        with self._transaction() as now:
            place = parameters((stage, step))
            if self._db.execute("SELECT 1 FROM steps WHERE stage = ? AND step = ?", place).fetchone():
                # The delete reads all curves of the stage, which are sorted by name, so only a repeated step runs it.
                self._db.execute("DELETE FROM metrics WHERE stage = ? AND step = ?", place)
            self._db.execute("INSERT OR REPLACE INTO steps VALUES (?, ?, ?)", [*place, now])
            self._write_metrics(stage, step, metrics)
            self._replace_groups(stage, step, "train", groups)

    def write_evaluation(
        self,
        stage: str,
        step: int,
        result: Any,
        groups: Iterable[Group] = (),
        name: str = "held_out",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Record results on held-out transitions, and the predictions behind them.

        Args:
            stage: Name given to :meth:`start_stage`.
            step: Optimizer step after which the model was evaluated.
            result: Any JSON value, for example metrics by kind of action, including the floors.
            groups: Groups of predictions for a reader to show.
            name: Name of the evaluation, if there are several; not ``train``.
            metrics: Values by name for the stage's curves, for example ``val/accuracy``.
        """
        assert name != "train", "'train' is the source of training groups"
        with self._transaction() as now:
            row = {"stage": stage, "step": step, "name": name, "time": now, "result": json.dumps(result)}
            insert(self._db, "evaluations", row, or_replace=True)
            self._write_metrics(stage, step, metrics or {})
            self._replace_groups(stage, step, name, groups)

    def write_episodes(
        self, stage: str, step: int, episodes: Iterable[Episode], source: str = "train"
    ) -> None:
        """Record the episodes of one step. Earlier records of the same step and source are replaced.

        Args:
            stage: Name given to :meth:`start_stage`.
            step: Optimizer step.
            episodes: Episodes in order.
            source: ``train``, or the name of the evaluation that played the episodes.
        """
        place = {"stage": stage, "step": step, "source": source}
        with self._transaction():
            self._db.execute(
                "DELETE FROM episodes WHERE stage = ? AND step = ? AND source = ?", parameters(place.values())
            )
            for position, episode in enumerate(episodes):
                self._write_episode({**place, "position": position}, episode)

    def set_status(self, status: Status, detail: str = "") -> None:
        """Set the status of the run. ``detail`` is one line for users, for example the error of a failed run."""
        with self._transaction():
            self._db.execute("UPDATE run SET status = ?, detail = ?", parameters((status, detail)))

    def heartbeat(self) -> None:
        """Update the heartbeat between steps. Every other write updates it too."""
        with self._transaction():
            pass

    def take_commands(self) -> list[Command]:
        """Return the commands that are not yet acknowledged, oldest first."""
        with named_errors(self.path):
            cursor = self._db.execute("SELECT * FROM control WHERE acknowledged IS NULL ORDER BY id")
            return [Command(**row_dict(cursor, row)) for row in cursor]

    def acknowledge(self, command_id: int, answer: str) -> None:
        """Acknowledge a command and record the answer for its sender."""
        with self._transaction() as now:
            self._db.execute(
                "UPDATE control SET acknowledged = ?, answer = ? WHERE id = ?",
                parameters((now, answer, command_id)),
            )

    def _text(self, body: str) -> int:
        """Return the id of a text, which is stored once."""
        digest = hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known = self._db.execute("SELECT id FROM texts WHERE digest = ?", (digest,)).fetchone()
        return known[0] if known else insert(self._db, "texts", {"digest": digest, "body": body})

    def _transition(self, transition: Transition) -> int:
        """Return the id of a transition, which is stored once however often it is predicted."""
        row = {
            **_attributes(transition, *TRANSITION_COLUMNS),
            "task": self._text(transition.task),
            "history": self._text(json.dumps([astuple(turn) for turn in transition.history])),
            "observation": self._text(transition.observation),
            "next_state": self._text(transition.next_state),
        }
        digest = hashlib.blake2b(json.dumps(row).encode(), digest_size=16).digest()
        known = self._db.execute("SELECT id FROM transitions WHERE digest = ?", (digest,)).fetchone()
        return known[0] if known else insert(self._db, "transitions", {"digest": digest, **row})

    def _write_metrics(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)",
            [parameters((stage, name, step, float(value))) for name, value in metrics.items()],
        )

    def _replace_groups(self, stage: str, step: int, source: str, groups: Iterable[Group]) -> None:
        self._db.execute(
            "DELETE FROM groups WHERE stage = ? AND step = ? AND source = ?",
            parameters((stage, step, source)),
        )
        for position, group in enumerate(groups):
            self._write_group({"stage": stage, "step": step, "source": source, "position": position}, group)

    def _write_group(self, place: Mapping[str, Any], group: Group) -> None:
        members = group.predictions
        rewards = [member.score.reward for member in members]
        similarities = [m.score.similarity for m in members if m.score.similarity is not None]
        row = {
            **place,
            "transition_key": self._transition(group.transition),
            "policy_version": min((m.completion.policy_version for m in members), default=None),
            "rewards": json.dumps(rewards),
            "mean_reward": _mean(rewards),
            "mean_similarity": _mean(similarities),
            "best_similarity": max(similarities, default=None),
            "mean_tokens": _mean(len(member.completion.token_ids) for member in members),
            "well_formed": _mean(member.score.well_formed for member in members),
            "zero_variance": group.zero_variance,
            "prompt_tokens": len(group.prompt_ids),
            "prompt": self._text(group.prompt),
        }
        group_id = insert(self._db, "groups", row)
        for member in members:
            self._write_prediction(group_id, member)
        predicted = dict.fromkeys(m.text if m.next_state is None else m.next_state for m in members)
        words = (group.transition.action, group.transition.next_state, "\n".join(predicted))
        self._db.execute(
            "INSERT INTO group_search (rowid, action, next_state, predictions) VALUES (?, ?, ?, ?)",
            (group_id, *map(well_formed, words)),
        )

    def _write_prediction(self, group_id: int, prediction: Prediction) -> None:
        row = {
            "group_id": group_id,
            **_attributes(prediction, "member", "advantage", "next_state", "thinking", "text"),
            **_attributes(prediction.score, "reward", "similarity", "well_formed"),
            **_attributes(prediction.completion, "finish_reason", "policy_version"),
            "tokens": len(prediction.completion.token_ids),
            "parts": json.dumps(dict(prediction.score.parts)),
        }
        insert(self._db, "predictions", row)

    def _write_episode(self, place: Mapping[str, Any], episode: Episode) -> None:
        row = {
            **place,
            **_attributes(episode, "episode_id", "environment", "game", "kind", "seed"),
            **_attributes(episode, "success", "truncated", "episode_return"),
            "num_turns": len(episode.turns),
            "task": self._text(episode.task),
            "final_observation": self._text(episode.final_observation),
        }
        key = insert(self._db, "episodes", row)
        for position, turn in enumerate(episode.turns):
            turn_row = {
                "episode": key,
                "position": position,
                **_attributes(turn, "valid", "reward", "action", "thinking"),
                "observation": self._text(turn.observation),
            }
            insert(self._db, "turns", turn_row)
