"""Audit of a reward before training: how well it separates correct from wrong texts."""

from rwml_lightning.audit.measure import Audit, Choice, Row, audit_reward, choose_tau

__all__ = ["Audit", "Choice", "Row", "audit_reward", "choose_tau"]
