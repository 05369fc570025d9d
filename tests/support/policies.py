"""Policies for collections that ask none."""

from __future__ import annotations

from rwml_lightning.prompts.policy import PolicyClient


def no_policy() -> PolicyClient:
    """Stand for the policy where none may be asked."""
    raise AssertionError("no model plays, but its policy was asked for")
