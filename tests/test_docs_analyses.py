"""Every config fragment of docs/analyses.md is understood by the real parser on top of a shipped config."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import rwml_callbacks
import yaml

from rwml_lightning.cli import RWMLCLI, default_callbacks

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]
FRAGMENTS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "analyses.md").read_text(), re.DOTALL)


class Parsed(Exception):
    """The callbacks are instantiated."""


class ParsingCLI(RWMLCLI):
    """Stops where the trainer would be made."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_trainer(self, **_: Any) -> Any:
        raise Parsed(self._get(self.config_init, "trainer").callbacks)


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_is_understood(fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(fragment)["trainer"]["callbacks"][0]
    if config["class_path"].endswith("Forgetting"):
        pytest.importorskip("lm_eval")
    (tmp_path / "analysis.yaml").write_text(fragment)
    monkeypatch.chdir(tmp_path)
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    monkeypatch.setattr(sys, "argv", ["rwml", "fit", "--config", quickstart, "--config", "analysis.yaml"])
    with pytest.raises(Parsed) as parsed:
        ParsingCLI()
    (callback,) = parsed.value.args[0]
    assert type(callback).__name__ == config["class_path"].rpartition(".")[2]
    assert {key: getattr(callback, key) for key in config["init_args"]} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in config["init_args"].items()
    }


def test_all_four_are_shown_and_every_run_watches_its_reward() -> None:
    assert len(FRAGMENTS) == 4
    watch = [c for c in default_callbacks([], None, None) if isinstance(c, rwml_callbacks.RewardHackingWatch)]
    assert len(watch) == 1
    own = rwml_callbacks.RewardHackingWatch(patience=3)
    assert not [
        c for c in default_callbacks([own], None, None) if isinstance(c, rwml_callbacks.RewardHackingWatch)
    ]
