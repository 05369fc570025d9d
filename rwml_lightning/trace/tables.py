"""Table definitions of the run store, and the check that a file is a run store.

Texts that repeat (prompts, observations, next states, tasks) are stored once and found by their digest. Rows of
``groups`` and ``transitions`` therefore stay narrow, and a sort over a million predictions reads few pages. Completions
are stored inline, since each is read only together with its group.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwml_lightning.trace.checked import DamagedRow

APPLICATION_ID = 0x52574D4C  # "RWML"
SCHEMA_VERSION = 2

TABLES = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    created REAL NOT NULL,
    heartbeat REAL NOT NULL,
    status TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE stages (
    stage TEXT PRIMARY KEY,
    total_steps INTEGER NOT NULL,
    config TEXT NOT NULL,
    started REAL NOT NULL,
    resumed REAL
);
CREATE TABLE steps (
    stage TEXT NOT NULL,
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    PRIMARY KEY (stage, step)
) WITHOUT ROWID;
CREATE TABLE metrics (
    stage TEXT NOT NULL,
    name TEXT NOT NULL,
    step INTEGER NOT NULL,
    value REAL,
    PRIMARY KEY (stage, name, step)
) WITHOUT ROWID;
CREATE TABLE evaluations (
    stage TEXT NOT NULL,
    step INTEGER NOT NULL,
    name TEXT NOT NULL,
    time REAL NOT NULL,
    result TEXT NOT NULL,
    PRIMARY KEY (stage, step, name)
);
CREATE TABLE texts (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    body TEXT NOT NULL
);
CREATE TABLE transitions (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    transition_id TEXT NOT NULL,
    environment TEXT NOT NULL,
    game TEXT NOT NULL,
    kind TEXT NOT NULL,
    split TEXT NOT NULL,
    valid INTEGER NOT NULL,
    knowable INTEGER NOT NULL,
    action TEXT NOT NULL,
    task INTEGER NOT NULL REFERENCES texts,
    history INTEGER NOT NULL REFERENCES texts,
    observation INTEGER NOT NULL REFERENCES texts,
    next_state INTEGER NOT NULL REFERENCES texts
);
CREATE INDEX transitions_by_name ON transitions (transition_id);
-- AUTOINCREMENT never reuses an id, so the entry of a replaced group in group_search matches no other group.
CREATE TABLE groups (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    stage TEXT NOT NULL,
    step INTEGER NOT NULL,
    source TEXT NOT NULL,
    position INTEGER NOT NULL,
    transition_key INTEGER NOT NULL REFERENCES transitions,
    policy_version INTEGER,
    rewards TEXT NOT NULL,
    mean_reward REAL,
    mean_similarity REAL,
    best_similarity REAL,
    mean_tokens REAL,
    well_formed REAL,
    zero_variance INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    prompt INTEGER NOT NULL REFERENCES texts,
    UNIQUE (stage, source, step, position)
);
CREATE INDEX groups_by_transition ON groups (transition_key);
CREATE TABLE predictions (
    group_id INTEGER NOT NULL REFERENCES groups ON DELETE CASCADE,
    member INTEGER NOT NULL,
    reward REAL,
    similarity REAL,
    advantage REAL,
    well_formed INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    finish_reason TEXT NOT NULL,
    policy_version INTEGER NOT NULL,
    parts TEXT NOT NULL,
    next_state TEXT,
    thinking TEXT NOT NULL,
    text TEXT NOT NULL,
    UNIQUE (group_id, member)
);
CREATE TABLE episodes (
    id INTEGER PRIMARY KEY,
    stage TEXT NOT NULL,
    step INTEGER NOT NULL,
    source TEXT NOT NULL,
    position INTEGER NOT NULL,
    episode_id TEXT NOT NULL,
    environment TEXT NOT NULL,
    game TEXT NOT NULL,
    kind TEXT NOT NULL,
    seed INTEGER NOT NULL,
    success INTEGER,
    truncated INTEGER NOT NULL,
    num_turns INTEGER NOT NULL,
    episode_return REAL,
    task INTEGER NOT NULL REFERENCES texts,
    final_observation INTEGER NOT NULL REFERENCES texts,
    UNIQUE (stage, step, source, position)
);
CREATE TABLE turns (
    episode INTEGER NOT NULL REFERENCES episodes ON DELETE CASCADE,
    position INTEGER NOT NULL,
    valid INTEGER NOT NULL,
    reward REAL,
    action TEXT NOT NULL,
    observation INTEGER NOT NULL REFERENCES texts,
    thinking TEXT NOT NULL,
    PRIMARY KEY (episode, position)
);
CREATE TABLE control (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    command TEXT NOT NULL,
    acknowledged REAL,
    answer TEXT
);
-- One row per group, without a copy of the text. columnsize serves only ranking, which no query uses.
CREATE VIRTUAL TABLE group_search USING fts5(action, next_state, predictions, content='', columnsize=0);
"""


class TraceError(ValueError):
    """Raised for a run store that cannot be used. The message is one line for users."""


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Convert errors of SQLite and damaged rows to a :class:`TraceError` that names the file and what to do."""
    try:
        yield
    except DamagedRow as error:
        raise TraceError(f"{path}: {error}: the file is damaged or was not written by a trainer") from error
    except sqlite3.Error as error:
        reason = str(error)
        if "fts5" in reason:
            advice = "use a Python whose SQLite has FTS5 (Debian's, conda's and python.org's have it)"
        elif "locked" in reason or "busy" in reason:
            advice = "another process has locked the file; try again"
        elif "malformed" in reason or "not a database" in reason:
            advice = "the file is damaged or is not a run store; `sqlite3 FILE .recover` may save its data"
        else:
            advice = "check the disk and the folder's permissions"
        raise TraceError(f"{path}: cannot use this run store ({reason}): {advice}") from error


def row_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    """Convert a row to a dict by column name. Texts that :func:`storable` encoded as bytes are decoded."""
    values = (as_text(value) if isinstance(value, bytes) else value for value in row)
    return {column[0]: value for column, value in zip(cursor.description, values, strict=True)}


def as_text(stored: bytes) -> str:
    """Decode bytes that :func:`storable` encoded. In other bytes, everything that is not UTF-8 becomes an escape."""
    try:
        return stored.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return stored.decode("utf-8", "backslashreplace")


def storable(text: str) -> str | bytes:
    """Return a text as SQLite accepts it: unchanged, or as bytes if a lone surrogate makes it invalid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def parameters(values: Iterable[Any]) -> list[Any]:
    """Return the parameters of a statement, with each text converted by :func:`storable`."""
    return [storable(value) if isinstance(value, str) else value for value in values]


def has_tables(db: sqlite3.Connection) -> bool:
    """Return whether the database defines any table."""
    return db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None


def check_version(db: sqlite3.Connection, path: Path) -> None:
    """Raise a :class:`TraceError` unless the open database is a run store that this version can read."""
    if not has_tables(db):
        raise TraceError(
            f"{path}: the file is empty, no run was recorded in it yet; start a run or name another folder"
        )
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    if application_id != APPLICATION_ID:
        raise TraceError(
            f"{path}: this SQLite file is not a run store of rwml-lightning; name a run's trace.db"
        )
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise TraceError(
            f"{path}: written by a newer rwml-lightning (store version {version}, supported up to {SCHEMA_VERSION}); upgrade rwml-lightning"
        )
    if version < SCHEMA_VERSION:
        raise TraceError(
            f"{path}: written by an older rwml-lightning (store version {version}, needed {SCHEMA_VERSION}); "
            "read it with the version that wrote it"
        )


def create_tables(db: sqlite3.Connection) -> None:
    """Define all tables in one transaction, so that a reader sees an empty file or a complete store."""
    db.executescript(
        f"BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; "
        f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )
