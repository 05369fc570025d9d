"""A run whose reward's server dies stops with one line, and the same command goes on once it is back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from rwml_lightning.cli import main
from support.fake_server import FakeServer, embed_letters, serving
from support.runs import write_config


@pytest.mark.heavy
def test_nothing_is_lost_when_the_server_dies(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDDER_KEY", "sk-very-secret")
    down = False

    def answer(_: int, body: dict[str, Any]) -> tuple[int, Any]:
        return (503, {}) if down else (200, embed_letters([f"{text} abc" for text in body["input"]]))

    with serving(FakeServer(answer)) as fake:
        server = {"model": "m", "base_url": fake.url, "api_key_env": "EMBEDDER_KEY", "max_wait_s": 0.2}
        reward = {
            "class_path": "rwml_lightning.rewards.EmbeddingReward",
            "init_args": {"server": server, "cache_size": 1},
        }
        file = write_config(
            tmp_path,
            tiny_model,
            checkpoint_every=1,
            trainer={"max_steps": 4},
            predictions={"reward": reward, "prompts_per_step": 8, "group_size": 2},
        )
        metrics = tmp_path / "runs" / "r" / "metrics.csv"

        def steps() -> list[int]:
            with metrics.open(newline="") as rows:
                return [int(row["step"]) for row in csv.DictReader(rows) if row["name"] == "wm/reward"]

        def dies_later(number: int, body: dict[str, Any]) -> tuple[int, Any]:
            nonlocal down
            down = down or (metrics.exists() and len(steps()) >= 2)
            return answer(number, body)

        fake.answer = dies_later
        with pytest.raises(SystemExit) as stopped:
            main(["fit", "--config", str(file)])
        assert stopped.value.code == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert "run the same command again to resume from the last checkpoint" in errors[0]
        assert steps() == [1, 2]
        down, fake.answer = False, answer
        main(["fit", "--config", str(file)])
    assert steps() == [1, 2, 3, 4]
    written = [
        path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.suffix != ".safetensors"
    ]
    assert not [path for path in written if b"sk-very-secret" in path.read_bytes()]
