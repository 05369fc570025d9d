"""Every fragment of docs/rewards.md is understood when it follows a shipped config."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from support.command_line import Parsed, ParsingCLI

ROOT = Path(__file__).parents[1]
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "rewards.md").read_text(), re.DOTALL)


def test_every_reward_has_its_fragment() -> None:
    named = {
        yaml.safe_load(text)["data"]["predictions"]["reward"]["class_path"].rsplit(".")[-1]
        for text in FRAGMENTS
    }
    assert named == {
        "EmbeddingReward",
        "RougeReward",
        "ExactMatchReward",
        "JudgeReward",
        "RewardByKind",
        "WeightedReward",
    }


@pytest.mark.heavy
@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_is_understood(fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "k")
    monkeypatch.chdir(tmp_path)
    Path("reward.yaml").write_text(fragment)
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    monkeypatch.setattr(
        sys, "argv", ["rwml_lightning", "fit", "--config", quickstart, "--config", "reward.yaml"]
    )
    with pytest.raises(Parsed):
        ParsingCLI()
