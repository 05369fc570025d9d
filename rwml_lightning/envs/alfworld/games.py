"""Index of a folder of ALFWorld games. It is stored in a small file, and a scan reads only new or changed games.

The folder may be any folder of ``game.tw-pddl`` files: the download of ``alfworld-download``, an older release, or generated games.
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

from rwml_lightning.files import replacing

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
    """Entry of one game in the index.

    Args:
        task_id: Folder of the game, relative to the scanned folder. ``reset(options={"task": ...})`` takes it.
        split: Name of the split folder, such as ``valid_seen``; ``all`` if there is none.
        task_type: One of ALFWorld's six task types; ``unknown`` if the game does not name it.
        num_walkthrough_steps: Number of actions of the stored expert solution; 0 if none is stored.
    """

    task_id: str
    split: str
    task_type: str
    num_walkthrough_steps: int


@dataclass(frozen=True, slots=True)
class GameIndex:
    """Index of the games in a folder.

    Args:
        root: The folder.
        games: Playable games, sorted by task id.
        broken: Unreadable game files, each as (file, reason).
        num_unsolvable: Number of games that are marked as unsolvable in their file. They are never played.
        num_unsupported: Number of games with movable receptacles or slicing, which ALFWorld's text engine leaves out too.
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
    """Return the resolved folder of the games.

    Args:
        data: Folder of games; ``None`` for the folder in ``ALFWORLD_DATA``.

    Raises:
        ValueError: Neither is given, or the folder does not exist.
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
        data: Folder; ``None`` for the folder in ``ALFWORLD_DATA``.
        on_broken: Treatment of unreadable game files: ``skip`` leaves them out and lists them in ``GameIndex.broken``, ``raise``
            raises an error.

    Raises:
        ValueError: The folder does not exist or has no playable game, or a game file is broken and ``on_broken`` is ``raise``.
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
        seen = f"no {GAME_FILE} file"
        if entries:
            seen = f"{len(entries)} game files, {len(broken)} of them broken ({shown})"
        raise ValueError(f"data: no playable game in {str(root)!r}: {seen}")
    games = tuple(Game(**entries[folder]["game"]) for folder in by_status["playable"])
    return GameIndex(root, games, broken, len(by_status["unsolvable"]), len(by_status["unsupported"]))


def read_game(path: Path) -> dict[str, Any]:
    """Read the content of a game file.

    Raises:
        ValueError: The file is not JSON, or a required part is missing. The message names the file.
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
    """Yield the folders below ``root`` with a game file, each with the file's modification time (ns) and size (bytes)."""
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
    """Return the task type of a game's folder: one of ALFWorld's six, or ``unknown`` if the folder does not name it."""
    try:
        return str(json.loads((folder / "traj_data.json").read_text(encoding="utf-8"))["task_type"])
    except (OSError, ValueError, KeyError, TypeError):
        # A game can be played without this file. ALFWorld puts the task type in the name of the parent folder.
        return folder.parent.name.split("-")[0] if "-" in folder.parent.name else "unknown"


def _index_files(root: Path) -> tuple[Path, Path]:
    """Return the two paths of the index: in the folder of the games, and in the user's cache for a read-only folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwml-lightning"
    return root / INDEX_FILE, cache / f"games-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.json"


def _load_index(root: Path) -> dict[str, dict[str, Any]]:
    for path in _index_files(root):
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # missing or incomplete: the index is made again
        if isinstance(index, dict) and index.get("version") == _INDEX_VERSION:
            return index["entries"]
    return {}


def _save_index(root: Path, entries: dict[str, dict[str, Any]]) -> None:
    content = json.dumps({"version": _INDEX_VERSION, "entries": entries})
    read_only = not root.stat().st_mode & stat.S_IWUSR  # also for the superuser, who could still write
    for path in _index_files(root)[read_only:]:
        # Without an index the next scan is only slower, so an unwritable folder is not an error.
        with contextlib.suppress(OSError):
            with replacing(path) as partial:
                partial.write_text(content, encoding="utf-8")
            return
