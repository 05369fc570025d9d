"""Games for the tests of this folder: generated ones, and the real ones where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

REAL_GAMES = Path(__file__).resolve().parents[3] / "shared" / "data" / "alfworld"


@pytest.fixture(scope="session")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny training game of each task type and two small validation games."""
    pytest.importorskip("alfworld")
    from rwml_lightning.envs.alfworld.generate import generate_games

    root = tmp_path_factory.mktemp("games")
    generate_games(root, 6, seed=7, split="train", difficulty="tiny", num_workers=2)
    generate_games(root, 2, seed=7, split="validation", difficulty="small", num_workers=2)
    return root


@pytest.fixture(scope="session")
def real_games() -> Path:
    """The folder of twelve real games."""
    pytest.importorskip("alfworld")
    if not REAL_GAMES.is_dir():
        pytest.skip("the real ALFWorld games are not at hand")
    return REAL_GAMES
