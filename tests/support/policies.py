"""Policies for collections that do not use one."""

from __future__ import annotations

from rwml_lightning.prompts.policy import PolicyClient


def no_policy() -> PolicyClient:
    """Fail if the collection asks for a policy."""
    raise AssertionError("no model plays, but its policy was asked for")
