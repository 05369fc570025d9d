"""The rewards shown in the documentation are understood by the real parser."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from support.command_line import Parsed, ParsingCLI
from support.paths import ROOT

pytestmark = pytest.mark.heavy

FRAGMENTS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "audit.md").read_text(), re.DOTALL)


def test_fragments_are_found() -> None:
    assert len(FRAGMENTS) == 3


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_goes_on_top_of_the_quickstart(
    fragment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reward.yaml").write_text(fragment)
    configs = ["--config", str(ROOT / "configs/quickstart.yaml"), "--config", str(tmp_path / "reward.yaml")]
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", *configs])
    with pytest.raises(Parsed):
        ParsingCLI()
