"""Every sweep file is one that W&B takes, and every command line that comes of it is understood by the real parser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from rwml_lightning.cli import main
from support.command_line import Parsed, ParsingCLI
from support.paths import ROOT

search = pytest.importorskip("sweeps", reason="W&B's own search and schema are not installed")
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
NAMES = [file.stem for file in FILES]
COMMAND = ["${env}", "python", "-m", "rwml_lightning", "fit"]


def expand(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of every run of a grid, as W&B's own search gives them."""
    config, runs = search.SweepConfig(sweep), []
    while (run := search.next_run(config, runs)) is not None:
        runs.append(run)
    return [run.config for run in runs]


def command_of(sweep: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """The command line that an agent runs, from the module's name on."""
    arguments = create_sweep_command_args({"args": parameters})
    filled = [arguments["args"] if part == "${args}" else [part] for part in sweep["command"]]
    line = [word for words in filled for word in words]
    return line[line.index("rwml_lightning") :]


def all_commands() -> Iterator[Any]:
    for file in FILES:
        sweep = yaml.safe_load(file.read_text())
        for number, parameters in enumerate(expand(sweep)):
            yield pytest.param(command_of(sweep, parameters), id=f"{file.stem}-{number}")
            if number == 0:  # the order that W&B's server gives them in is its own
                yield pytest.param(
                    command_of(sweep, dict(sorted(parameters.items()))), id=f"{file.stem}-sorted"
                )


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_a_sweep_is_valid_and_runs_the_module(file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert search.schema_violations_from_proposed_config(sweep) == []
    command, configs = sweep["command"][: len(COMMAND)], sweep["command"][len(COMMAND) : -1]
    assert (command, sweep["command"][-1]) == (COMMAND, "${args}")
    assert set(configs[::2]) == {"--config"}
    assert all((ROOT / config).is_file() for config in configs[1::2])
    assert sweep["name"] == file.stem
    assert sweep["parameters"]["run.name"]["value"] == f"sweep-{file.stem}"
    assert 3 < len(expand(sweep)) <= 20


@pytest.mark.heavy
@pytest.mark.parametrize("line", all_commands())
def test_a_command_line_is_understood(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(Parsed):
        ParsingCLI()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "data.predictions.reward.init_args.tau_q",
            "data.predictions.reward.init_args.tau_q is not a known key; did you mean tau_d?",
        ),
        ("trainer.callbacks.init_args.tau_q", "trainer.callbacks.init_args.tau_q is not a known key"),
        ("run.nme", "run.nme is not a known key; did you mean run.name?"),
    ],
)
def test_a_key_that_is_not_in_the_config_is_one_line(
    key: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = yaml.safe_load((ROOT / "configs" / "sweeps" / "tau_d.yaml").read_text())
    absolute = [str(ROOT / part) if part.endswith(".yaml") else part for part in sweep["command"]]
    line = command_of({**sweep, "command": absolute}, {key: {"value": 1}})
    with pytest.raises(SystemExit) as stopped:
        main(line[1:])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"
