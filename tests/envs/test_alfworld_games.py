"""The index of games: splits, formats, broken files, cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rwml_lightning.envs.alfworld import games as games_module
from rwml_lightning.envs.alfworld.games import INDEX_FILE, scan_games

PLAYABLE = {
    "pddl_domain": "d",
    "grammar": "g",
    "pddl_problem": "p",
    "solvable": True,
    "walkthrough": ["look", "inventory"],
}


def _write(root: Path, folder: str, content: object, task_type: str | None = None) -> Path:
    path = root / folder / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if task_type:
        (path.parent / "traj_data.json").write_text(json.dumps({"task_type": task_type}))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    older = {key: PLAYABLE[key] for key in ("pddl_domain", "grammar", "pddl_problem")}
    _write(tmp_path, "json_2.1.1/valid_seen/pick_heat_then_place_in_recep-Egg-None-Fridge-3/trial_1", older)
    _write(tmp_path, "json_2.1.1/train/a/trial_2", PLAYABLE, "look_at_obj_in_light")
    _write(tmp_path, "json_2.1.1/train/a/trial_3", {**PLAYABLE, "solvable": False})
    _write(tmp_path, "json_2.1.1/train/pick_and_place_with_movable_recep-x/trial_4", PLAYABLE)
    return tmp_path


def test_splits_formats_and_what_is_left_out(folder: Path) -> None:
    index = scan_games(folder)
    assert index.tasks == {
        "train": ("json_2.1.1/train/a/trial_2",),
        "valid_seen": ("json_2.1.1/valid_seen/pick_heat_then_place_in_recep-Egg-None-Fridge-3/trial_1",),
    }
    assert [(game.task_type, game.num_walkthrough_steps) for game in index.games] == [
        ("look_at_obj_in_light", 2),
        ("pick_heat_then_place_in_recep", 0),
    ]
    assert (index.num_unsolvable, index.num_unsupported, index.broken) == (1, 1, ())


def test_a_folder_of_one_split_and_one_without(tmp_path: Path) -> None:
    _write(tmp_path, "valid_unseen/a/trial", PLAYABLE)
    _write(tmp_path, "mine/trial", PLAYABLE)
    assert set(scan_games(tmp_path / "valid_unseen").tasks) == {"valid_unseen"}
    assert set(scan_games(tmp_path / "mine").tasks) == {"all"}


def test_broken_files_are_named_and_skipped_or_refused(folder: Path) -> None:
    _write(folder, "json_2.1.1/train/b/trial_5", "{ not json")
    _write(folder, "json_2.1.1/train/b/trial_6", {"grammar": "g"})
    for _ in range(2):  # the second answer comes from the cache
        index = scan_games(folder)
        assert len(index.games) == 2
        assert [name for name, _ in index.broken] == [
            "json_2.1.1/train/b/trial_5/game.tw-pddl",
            "json_2.1.1/train/b/trial_6/game.tw-pddl",
        ]
        assert index.broken[1][1] == "no text under pddl_domain, pddl_problem"
        with pytest.raises(
            ValueError, match=r"2 of 6 game files .* cannot be read: json_2.1.1/train/b/trial_5"
        ):
            scan_games(folder, on_broken="raise")


def test_only_new_and_changed_games_are_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = games_module._read_game
    monkeypatch.setattr(
        games_module, "_read_game", lambda root, name: read.append(name) or original(root, name)
    )
    first = scan_games(folder)
    assert len(read) == 4
    assert (folder / INDEX_FILE).is_file()
    read.clear()
    assert scan_games(folder) == first
    assert read == []

    path = folder / "json_2.1.1/train/a/trial_3/game.tw-pddl"
    path.write_text(json.dumps({**PLAYABLE, "solvable": 1}))
    _write(folder, "json_2.1.1/train/a/trial_7", PLAYABLE)
    assert len(scan_games(folder).games) == 4
    assert sorted(name[-7:] for name in read) == ["trial_3", "trial_7"]

    read.clear()
    path.unlink()
    assert len(scan_games(folder).games) == 3
    assert read == []


def test_the_cache_of_a_read_only_folder_lies_in_the_users(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    os.chmod(folder, 0o555)
    try:
        scan_games(folder)
        assert not (folder / INDEX_FILE).exists()
        assert len(list(cache.glob("rwml-lightning/games-*.json"))) == 1
    finally:
        os.chmod(folder, 0o755)


def test_a_cut_off_index_is_made_anew(folder: Path) -> None:
    first = scan_games(folder)
    (folder / INDEX_FILE).write_text('{"version": 1, "entr')
    assert scan_games(folder) == first


def test_missing_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(ValueError, match=r"data: name a folder of game.tw-pddl files, or set ALFWORLD_DATA"):
        scan_games()
    with pytest.raises(ValueError, match=r"data: there is no folder '.*nowhere'"):
        scan_games(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data: no playable game in .* no game.tw-pddl file"):
        scan_games(tmp_path)
    with pytest.raises(ValueError, match="on_broken: 'ignore' is neither"):
        scan_games(tmp_path, on_broken="ignore")  # type: ignore[arg-type]
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="ALFWORLD_DATA: there is no folder"):
        scan_games()


def test_the_environment_variable_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(folder))
    assert len(scan_games().games) == 2
