"""Environments that are registered when this module is imported, as packages of environments do."""

from __future__ import annotations

import gymnasium

from support.environments import ScriptedEnv

for name in ("Plain-v0", "Plain-v1", "spaced/Named-v2"):
    gymnasium.register(name, entry_point="support.environments:ScriptedEnv", kwargs={"greeting": name})


class Own(ScriptedEnv):
    """An unregistered class of the same module."""
