"""Shipped configs as options of the command line."""

from __future__ import annotations

import re

from support.paths import ROOT


def stack_of(config: str) -> list[str]:
    """The files that a config says it stands on, and itself, as options of the command line."""
    lines = (ROOT / config).read_text().splitlines()
    head = " ".join(line for line in lines if line.startswith("#"))
    files = re.findall(r"--config (\S+\.yaml)", head) or [config]
    assert files[-1] == config
    return [word for file in files for word in ("--config", str(ROOT / file))]
