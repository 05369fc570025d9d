"""Index of a folder of ALFWorld games: scanned once, kept in a small file, only new or changed games read again.

Any folder of ``game.tw-pddl`` files will do: what ``alfworld-download`` fetches, older releases, or generated games.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

GAME_FILE = "game.tw-pddl"
INDEX_FILE = ".rwml_game_index.json"
OnBroken = Literal["skip", "raise"]
_INDEX_VERSION = 1
_SPLITS = (
    "train",
    "validation",
    "test",
    "valid_seen",
    "valid_unseen",
    "valid_train",
    "tests_seen",
    "tests_unseen",
)
_GAME_TEXTS = ("pddl_domain", "grammar", "pddl_problem")


@dataclass(frozen=True, slots=True)
class Game:
    """One game.

    Args:
        task_id: Its folder, relative to the scanned one; what ``reset(options={"task": ...})`` takes.
        split: Sub-folder such as ``valid_seen``; ``all`` where there is none.
        task_type: One of ALFWorld's six; ``unknown`` where the game does not say.
        num_walkthrough_steps: Length of the stored expert solution; 0 where none is stored.
    """

    task_id: str
    split: str
    task_type: str
    num_walkthrough_steps: int


@dataclass(frozen=True, slots=True)
class GameIndex:
    """What a folder holds.

    Args:
        root: The folder.
        games: Playable games in the order of their ids.
        broken: Game files that cannot be read, with the reason.
        num_unsolvable: Games that their file marks as unsolvable; never played.
        num_unsupported: Games with movable receptacles or slicing, which ALFWorld's text engine leaves out too.
    """

    root: Path
    games: tuple[Game, ...]
    broken: tuple[tuple[str, str], ...] = ()
    num_unsolvable: int = 0
    num_unsupported: int = 0

    @property
    def tasks(self) -> dict[str, tuple[str, ...]]:
        """Task ids by split."""
        splits = sorted({game.split for game in self.games})
        return {split: tuple(game.task_id for game in self.games if game.split == split) for split in splits}


def games_folder(data: str | os.PathLike[str] | None) -> Path:
    """The folder to play from.

    Args:
        data: Folder of games; ``None`` for the one that ``ALFWORLD_DATA`` names.

    Raises:
        ValueError: Neither is given, or there is no such folder.
    """
    source = "data" if data is not None else "ALFWORLD_DATA"
    folder = data if data is not None else os.environ.get("ALFWORLD_DATA")
    if not folder:
        raise ValueError(f"data: name a folder of {GAME_FILE} files, or set ALFWORLD_DATA to one")
    path = Path(os.path.expandvars(os.fspath(folder))).expanduser()
    if not path.is_dir():
        raise ValueError(
            f"{source}: there is no folder {str(path)!r}; generate games into it, or run alfworld-download"
        )
    return path.resolve()


def scan_games(data: str | os.PathLike[str] | None = None, on_broken: OnBroken = "skip") -> GameIndex:
    """Find all games below a folder.

    Args:
        data: Folder; ``None`` for the one that ``ALFWORLD_DATA`` names.
        on_broken: ``skip`` leaves unreadable game files out, named in ``GameIndex.broken``; ``raise`` refuses the folder.

    Raises:
        ValueError: No such folder, no playable game in it, or a broken game file and ``on_broken="raise"``.
    """
    if on_broken not in ("skip", "raise"):
        raise ValueError(f"on_broken: {on_broken!r} is neither 'skip' nor 'raise'")
    root = games_folder(data)
    known = _load_index(root)
    entries: dict[str, dict[str, Any]] = {}
    for folder, stamp in _walk(root):
        entry = known.get(folder)
        entries[folder] = (
            entry if entry and entry["stamp"] == stamp else {"stamp": stamp, **_read_game(root, folder)}
        )
    if entries != known:
        _save_index(root, entries)

    by_status: dict[str, list[str]] = {"playable": [], "broken": [], "unsolvable": [], "unsupported": []}
    for folder in sorted(entries):
        by_status[entries[folder]["status"]].append(folder)
    broken = tuple((f"{folder}/{GAME_FILE}", entries[folder]["reason"]) for folder in by_status["broken"])
    shown = "; ".join(f"{name}: {reason}" for name, reason in broken[:3])
    if broken and on_broken == "raise":
        raise ValueError(
            f"{len(broken)} of {len(entries)} game files in {str(root)!r} cannot be read: {shown}"
        )
    if not by_status["playable"]:
        seen = (
            f"{len(entries)} game files, {len(broken)} of them broken ({shown})"
            if entries
            else f"no {GAME_FILE} file"
        )
        raise ValueError(f"data: no playable game in {str(root)!r}: {seen}")
    games = tuple(Game(**entries[folder]["game"]) for folder in by_status["playable"])
    return GameIndex(root, games, broken, len(by_status["unsolvable"]), len(by_status["unsupported"]))


def read_game(path: Path) -> dict[str, Any]:
    """Content of a game file.

    Raises:
        ValueError: It is not JSON, or lacks a part that play needs; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    missing = [
        key for key in _GAME_TEXTS if not isinstance(content, dict) or not isinstance(content.get(key), str)
    ]
    if missing:
        raise ValueError(f"{path}: no text under {', '.join(missing)}")
    return content


def _walk(root: Path) -> Iterator[tuple[str, list[int]]]:
    """Folders below ``root`` that hold a game, with what tells whether its file changed."""
    for folder, _, files in os.walk(root, followlinks=True):
        if GAME_FILE in files:
            status = os.stat(os.path.join(folder, GAME_FILE))
            yield Path(folder).relative_to(root).as_posix(), [status.st_mtime_ns, status.st_size]


def _read_game(root: Path, folder: str) -> dict[str, Any]:
    if "movable" in folder or "Sliced" in folder:
        return {"status": "unsupported"}
    path = root / folder / GAME_FILE
    try:
        content = read_game(path)
    except ValueError as error:
        return {"status": "broken", "reason": str(error).removeprefix(f"{path}: ")}
    if not content.get("solvable", True):
        return {"status": "unsolvable"}
    parts = Path(folder).parts
    split = next((part for part in (*parts, root.name) if part in _SPLITS), "all")
    game = Game(folder, split, task_type(root / folder), len(content.get("walkthrough") or ()))
    return {"status": "playable", "game": asdict(game)}


def task_type(folder: Path) -> str:
    """One of ALFWorld's six, of a game's folder; ``unknown`` where it does not say."""
    try:
        return str(json.loads((folder / "traj_data.json").read_text(encoding="utf-8"))["task_type"])
    except (OSError, ValueError, KeyError, TypeError):
        # Games play without this file; ALFWorld names the folder above after the task type.
        return folder.parent.name.split("-")[0] if "-" in folder.parent.name else "unknown"


def _index_files(root: Path) -> tuple[Path, Path]:
    """Where the index may lie: beside the games, or in the user's cache where their folder is read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwml-lightning"
    return root / INDEX_FILE, cache / f"games-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"


def _load_index(root: Path) -> dict[str, dict[str, Any]]:
    for path in _index_files(root):
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # missing, or cut off: made anew
        if isinstance(index, dict) and index.get("version") == _INDEX_VERSION:
            return index["entries"]
    return {}


def _save_index(root: Path, entries: dict[str, dict[str, Any]]) -> None:
    content = json.dumps({"version": _INDEX_VERSION, "entries": entries})
    read_only = not root.stat().st_mode & stat.S_IWUSR  # said so even to a superuser, who could write
    for path in _index_files(root)[read_only:]:
        # Without an index the next scan is slow but right, so a folder that cannot be written is no error.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.{os.getpid()}")
            unfinished.write_text(content, encoding="utf-8")
            os.replace(unfinished, path)
            return
