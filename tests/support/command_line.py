"""The command line in the process of the test: its errors, and its parser without a trainer."""

from __future__ import annotations

from typing import Any

import pytest

from rwml_lightning.cli import RWMLCLI, main


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


class Parsed(Exception):
    """Raised when module and data are instantiated and nothing is loaded yet."""


class ParsingCLI(RWMLCLI):
    """Skip the search for the model, and stop before the trainer, because its devices may be missing here."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_trainer(self, **_: Any) -> Any:
        if self.subcommand == "fit":
            self.model.check_precision(self._get(self.config_init, "trainer").precision or "32-true")
        raise Parsed
